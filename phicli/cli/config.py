"""`phicli config`: every setting, its value, and where the value comes from; reading and writing single ones."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from phicli.cli import console, options
from phicli.cli.manner import set_manner
from phicli.cli.once import Command, Group
from phicli.config.layers import SETTINGS, Settings, Value
from phicli.config.places import CONFIG_NAME, find_settings_file
from phicli.config.writing import known_setting, typed_value, write_settings
from phicli.errors import Missing

app = typer.Typer(cls=Group)
Key = Annotated[str, typer.Argument(help="A setting, such as model or finetune.max_steps", show_default=False)]


@app.callback(invoke_without_command=True)
def config(
    context: typer.Context,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.ProgressForm = None,
) -> None:
    """Show every setting, its value and where the value comes from; get, set, edit.

    Examples:
      phicli config --json
      phicli config set finetune.max_steps 200
    More: docs/settings.md, docs/housekeeping.md
    """
    set_manner(quiet, verbose, progress)
    if context.invoked_subcommand:
        return
    values = _values(Settings())
    if json:
        console.result_json({key: {"value": v.value, "origin": v.origin} for key, v in values.items()})
        return
    rows = [
        (key, repr(v.value) if isinstance(v.value, str) else v.value, v.origin, SETTINGS[key].env, SETTINGS[key].help)
        for key, v in values.items()
    ]
    console.result_table(("setting", "value", "from", "environment", "meaning"), rows)


@app.command(cls=Command)
@options.command
def get(key: Key, json: options.Json = False) -> None:
    """Print the value of one setting; where it comes from on stderr.

    Examples:
      phicli config get model
      phicli config get finetune.max_steps --json
    More: docs/housekeeping.md
    """
    known_setting(key)
    found = _values(Settings())[key]
    if json:
        console.result_json({"value": found.value, "origin": found.origin})
        return
    value: Any = ",".join(found.value) if isinstance(found.value, tuple) else found.value
    console.note(f"from {found.origin}")
    console.result("" if value is None else str(value).lower() if isinstance(value, bool) else str(value))


@app.command(cls=Command, name="set", context_settings={"ignore_unknown_options": True})  # -1 is a value
@options.command
def set_(
    key: Key, value: Annotated[str, typer.Argument(help="Its value; of a list, with commas", show_default=False)],
) -> None:
    """Write one setting into phicli.toml, the one that is in use or a new one here; all else in it stays.

    Examples:
      phicli config set model tiny
      phicli config set finetune.max_steps 200
    More: docs/housekeeping.md
    """
    checked = typed_value(known_setting(key), console.typed(value))
    console.result(str(write_settings(Settings().path or Path(CONFIG_NAME), {key: checked})))


@app.command(cls=Command)
@options.command
def edit() -> None:
    """Open phicli.toml in the editor of $VISUAL or $EDITOR, and check it afterwards.

    Examples:
      phicli config edit
      phicli --config other.toml config edit
    More: docs/housekeeping.md
    """
    named = os.environ.get("PHICLI_CONFIG")
    path = Path(named) if named else find_settings_file() or Path(CONFIG_NAME)  # whether or not it can be read
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise Missing(f"neither VISUAL nor EDITOR names an editor for {path}", hint="EDITOR=nano phicli config edit")
    if not path.exists():
        write_settings(path, {})
    if subprocess.run([*shlex.split(editor), str(path)], check=False).returncode:
        raise Missing("the editor ended with an error", where=editor)
    _values(Settings())
    console.result(str(path))


def _values(settings: Settings) -> dict[str, Value]:
    return settings.with_last({key: settings.get(setting) for key, setting in SETTINGS.items()})
