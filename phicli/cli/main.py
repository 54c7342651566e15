"""The table of commands, in the order of the lab, and the one place where errors become messages and exit codes."""

import atexit
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from phicli.cli import options
from phicli.errors import ExitCode, PhicliError
from phicli.libraries import subdued
from phicli.version import __version__

USAGE_ERROR: Any = typer.BadParameter.__base__  # of every fault the parser finds; typer does not export it

COMMANDS = (
    "inspect",
    "quantize",
    "finetune",
    "optimize",
    "chat",
    "evaluate",
    "run",
    "status",
    "upload",
    "download",
    "azure",
    "config",
    "doctor",
)
GROUPS = ("azure",)  # those with commands of their own



class LabOrder(typer.core.TyperGroup):
    """Lists commands in the order of the table; Typer would put those with commands of their own first."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    name="phicli", cls=LabOrder, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Inspect data, AWQ-quantize a Phi model, LoRA-finetune it, optimize it to ONNX with swappable adapters, "
         "chat with it, upload it.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def phicli_options(
    config: Annotated[Path | None, typer.Option(
        "--config", envvar="PHICLI_CONFIG", help="Settings file [default: phicli.toml in this folder]")] = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from")] = False,
    version: Annotated[bool, typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Show the version and exit")] = False,
) -> None:
    if config is not None:
        os.environ["PHICLI_CONFIG"] = str(config)


for _name in COMMANDS:
    if _name in GROUPS:
        app.add_typer(import_module(f"phicli.cli.{_name}").app, name=_name)
    else:
        app.command(_name)(options.command(getattr(import_module(f"phicli.cli.{_name}"), _name)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Messages go to stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us: nobody reads it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 (for as long as we run)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode gets "?", not a crash
    try:
        with subdued():
            code = app(argv, prog_name="phicli", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else ExitCode.OK
    except BrokenPipeError:
        _drop_stdout()
        return ExitCode.OK
    except SystemExit as e:
        if not isinstance(e.__context__, BrokenPipeError):
            raise
        _drop_stdout()  # the parser turns a reader that went away into exit code 1
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except USAGE_ERROR as e:
        e.show()
        return ExitCode.USAGE
    except Exception as e:
        return _report(e, "--traceback" in argv)


def _report(error: Exception, traceback: bool) -> int:
    from phicli.cli import console
    from phicli.resources.shortage import ran_out, shortage

    if traceback:
        import traceback as tb

        sys.stderr.write("".join(tb.format_exception(error)))
    if not isinstance(error, PhicliError):
        known = shortage(error) if ran_out(error) else PhicliError(
            f"{type(error).__name__}: {error}", hint="the same with: phicli --traceback …")
        known.log = getattr(error, "log", None)  # type: ignore[attr-defined]
        error = known
    console.failure(error)
    return error.exit_code


def _drop_stdout() -> None:
    """The reader of our output is gone: keep Python from complaining about it at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def entry() -> None:
    """The console script. Leaves out Python's taking apart of what was imported, a second for torch and transformers.

    Threads and libraries end as always: what is registered first for the end is called last.
    """
    codes: list[int] = []
    atexit.register(lambda: _leave(codes[0]) if codes and not (sys.gettrace() or sys.getprofile()) else None)
    codes.append(main())
    sys.exit(codes[0])


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
