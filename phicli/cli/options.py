"""Options of the commands: made from the settings classes, and the few that are no settings."""

import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypedDict

import typer

from phicli.cli import console
from phicli.cli.away import AWAY, check_meant, run_away
from phicli.cli.completion import completion_of
from phicli.cli.following import Following, Next
from phicli.cli.help import ALL, GENERAL
from phicli.cli.manner import FORMS, set_manner
from phicli.config.azure import JobConfig
from phicli.config.bases import OfModel
from phicli.config.last_used import remember_last
from phicli.config.layers import Settings
from phicli.config.setting import Setting, StepConfig, flags_of, settings_of
from phicli.errors import PhicliError

Flags = dict[str, Any]  # a command's parameter of this type gets the settings that were given as flags, by name
USES = ("quantize", "finetune", "optimize", "evaluate", "chat", "serve", "run")  # after these a model is the last
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done, why, with time and space")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout", rich_help_panel=GENERAL)]
Quiet = Annotated[bool, typer.Option(
    "--quiet", "-q", help="Say nothing but results, warnings and errors", rich_help_panel=GENERAL)]
Verbose = Annotated[bool, typer.Option(
    "--verbose", "-v", help="Show what libraries print too, which else goes to a log", rich_help_panel=GENERAL)]
ProgressForm = Annotated[str | None, typer.Option(
    "--progress", metavar="|".join(FORMS), autocompletion=lambda: FORMS, rich_help_panel=GENERAL,
    help="How messages look; json: lines of JSON [default: auto]")]


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(ctx.command.help_text(ctx, whole=True))  # type: ignore[attr-defined]
        raise typer.Exit


class Everywhere(TypedDict):
    """What every command takes beside its own options."""

    quiet: Quiet
    verbose: Verbose
    progress: ProgressForm
    help_all: Annotated[bool, typer.Option(
        ALL, callback=_show_all, is_eager=True, help="Explain all options and exit", rich_help_panel=GENERAL)]


def command(function: Callable[..., Sequence[Next] | None]) -> Callable[..., None]:
    """A command whose parameters annotated with a settings class become that class's options.

    The object that the command gets has flags, environment and phicli.toml in it; other parameters stay as they are.
    The commands that it returns are shown as what comes next, with the settings that it had.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    own = inspect.signature(function).parameters
    configs = {name: hints[name] for name in own if _is_config(hints[name])}
    if function.__name__ in AWAY:
        configs["job"] = JobConfig
    flags = [name for name in own if hints[name] == Flags]
    plain = {name: p.replace(annotation=hints[name], kind=p.KEYWORD_ONLY)
             for name, p in own.items() if name not in configs and name not in flags}
    known = {name: setting for config in reversed(configs.values()) for name, setting in settings_of(config).items()}
    # of an annotation, Typer takes the first name for a default
    spellings = {name: p.annotation.__metadata__[0].default for name, p in plain.items() if "job" in configs}
    made = {name: _parameter(name, setting) for name, setting in known.items()}
    added = {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind,
                                     default=None if kind is ProgressForm else False)
             for name, kind in typing.get_type_hints(Everywhere, include_extras=True).items()}
    title = " ".join(dict.fromkeys((function.__module__.rpartition(".")[2], function.__name__.rstrip("_"))))

    def run(**given: Any) -> None:
        from phicli.hub.roots import check_default_root

        set_manner(given["quiet"], given["verbose"], given["progress"])
        settings = Settings()
        raw = {name: given[name] for name in made if given[name] is not None}
        following = Following(settings, raw, known)
        try:
            resolved = {name: settings.resolve(config, given) for name, config in configs.items()}
            for config in resolved.values():
                check_default_root(config)
            begun, job = True, resolved.pop("job", None)
            try:
                after: Sequence[Next] | None
                if job and job.on:
                    after = run_away(title, job, resolved["config"], settings, raw, known, given, spellings)
                else:
                    if job:
                        check_meant(raw, known)
                    more = dict.fromkeys(flags, raw) | {name: given[name] for name in plain}
                    after = function(**resolved, **more)
            except PhicliError:
                begun = False
                raise
            finally:
                if begun and not given.get("dry_run"):
                    _remember(settings, resolved.values())
        except PhicliError as e:
            following.complete(e, title)
            raise
        for one in after or ():
            console.following(*following.told(one))

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    run.__wrapped__ = function  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(list((made | plain | added).values()))  # type: ignore[attr-defined]
    run.settings = known  # type: ignore[attr-defined]
    return run


def _remember(settings: Settings, configs: Iterable[StepConfig]) -> None:
    """Keep which model was used, if it was a step that used it."""
    for config in configs:
        if isinstance(config, OfModel) and config.STEP in USES and not getattr(config, "path", None):
            remember_last(settings.folder, config.model, config.root_folder)


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, StepConfig)


def _parameter(name: str, setting: Setting) -> inspect.Parameter:
    kind: Any = list[str] if setting.kind is tuple else setting.kind
    annotation = Annotated[kind | None, option(name, setting)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def option(name: str, setting: Setting) -> Any:
    """A Typer option, or argument, whose help and shown default are those of the setting."""
    completion: Any = completion_of(name, setting)
    if setting.argument:
        return typer.Argument(help=setting.help, show_default=False, metavar=setting.metavar)
    text = setting.help + (f" [default: {setting.shown_default}]" if setting.shown_default is not None else "")
    return typer.Option(*flags_of(name, setting), help=text, show_default=False,
                        metavar=setting.metavar, autocompletion=completion, rich_help_panel=setting.panel or None)
