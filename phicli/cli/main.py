"""The table of commands, in the order of the lab, and the one place where errors become messages and exit codes."""

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import Annotated, Any

import typer

from phicli.cli import options, process
from phicli.cli.manner import set_manner, usual_manner
from phicli.cli.once import Command, Group
from phicli.errors import ExitCode, Missing, PhicliError
from phicli.libraries import subdued
from phicli.printable import printable
from phicli.version import __version__

USAGE_ERROR: Any = typer.BadParameter.__base__  # of every fault the parser finds; typer does not export it

COMMANDS = (
    "init",
    "inspect",
    "quantize",
    "finetune",
    "merge",
    "optimize",
    "export",
    "chat",
    "serve",
    "evaluate",
    "benchmark",
    "gate",
    "run",
    "search",
    "status",
    "verify",
    "report",
    "list",
    "show",
    "rm",
    "upload",
    "download",
    "azure",
    "jobs",
    "deploy",
    "config",
    "doctor",
    "env",
    "logs",
)
GROUPS = ("azure", "config", "jobs")  # those with commands of their own



class LabOrder(Group):
    """Lists commands in the order of the table; Typer would put those with commands of their own first."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    name="phicli", cls=LabOrder, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Inspect data, AWQ-quantize a Phi model, LoRA-finetune it, optimize it to ONNX with swappable adapters, "
         "chat with it, upload it.\n\nExamples:\n  phicli run --model tiny\n  phicli chat --model tiny --adapter travel"
         "\nMore: README.md, docs/terminal.md",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def phicli_options(
    config: Annotated[Path | None, typer.Option(
        "--config", envvar="PHICLI_CONFIG", help="Settings file [default: phicli.toml here or above]")] = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from")] = False,
    version: Annotated[bool, typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Show the version and exit")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.ProgressForm = None,
) -> None:
    set_manner(quiet, verbose, progress)
    if config is not None:
        os.environ["PHICLI_CONFIG"] = str(config)


for _name in COMMANDS:
    if _name in GROUPS:
        app.add_typer(import_module(f"phicli.cli.{_name}").app, name=_name)
    else:
        app.command(_name, cls=Command)(options.command(getattr(import_module(f"phicli.cli.{_name}"), _name)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Messages go to stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    usual_manner()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="phicli")  # a terminal without Unicode gets "?", not a crash
    try:
        with subdued():
            code = app(argv, prog_name="phicli", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else ExitCode.OK
    except SystemExit as e:
        if not isinstance(e.__context__, BrokenPipeError):
            raise
        return _report(e.__context__, argv)  # the parser takes each of them for a reader of stdout that went away
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except USAGE_ERROR as e:
        said = printable(e.format_message())  # which repeats what was typed
        e.format_message = lambda: said
        e.show()
        return ExitCode.USAGE
    except BaseException as e:  # a panic in Rust is no Exception
        return process.signalled() or _report(e, argv)


def _report(error: BaseException, argv: Sequence[str]) -> int:
    from phicli.cli import console
    from phicli.resources.shortage import ran_out, shortage

    if "--traceback" in argv:
        import traceback as tb

        sys.stderr.write(printable("".join(tb.format_exception(error))))
    if not isinstance(error, PhicliError):
        known = shortage(error) if ran_out(error) else _no_space(error) or _fault(error)
        known.log = getattr(error, "log", None)  # type: ignore[attr-defined]
        error = known
    console.failure(error)
    return error.exit_code


def _no_space(error: BaseException) -> PhicliError | None:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return Missing(f"cannot be written: {error.strerror}", where=error.filename,
                   hint="free some space where the result, or stdout, goes")


def _fault(error: BaseException) -> PhicliError:
    """A fault of ours, with the place of ours that it came through: many exceptions have no words, or too few."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    ours = [(frame.f_globals["__name__"], frame.f_code.co_name) for frame in frames
            if frame.f_globals.get("__name__", "").startswith("phicli.")]
    module, function = ours[-1] if ours else ("phicli", "main")
    text = f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__
    return PhicliError(f"unexpected {text}", where=f"{module}.{function}", hint="the same with: phicli --traceback …")
