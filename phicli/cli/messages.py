"""What is said beside the results, on stderr: for people, or as lines of JSON where --progress json asks for them."""

import json
import math
import sys
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from phicli.cli.manner import manner
from phicli.errors import Missing, PhicliError
from phicli.printable import printable, printable_json
from phicli.units import number


def note(text: str, console: Console | None = None) -> None:
    """One line that a person may want to know."""
    if not manner().quiet and not event("note", console, text=text):
        _show(Text(set_in(text), style="dim"), console)


def warn(text: str, console: Console | None = None) -> None:
    """One line that a person should know."""
    if not event("warning", console, text=text):
        _show(Text.assemble(("warning: ", "yellow"), set_in(text)), console)


def following(command: str, where: str | None = None) -> None:
    """A command that comes next, on one line that can be pasted; where: on which machine, if not on this one."""
    if not manner().quiet and not event("next", None, command=command, **({"where": where} if where else {})):
        label = f"next, {where}: " if where else "next: "
        stderr().print(Text.assemble((label, "cyan"), set_in(command)), soft_wrap=True)


def failure(error: PhicliError) -> None:
    """What went wrong, where, and what helps."""
    log = getattr(error, "log", None)
    see = getattr(error, "see", "phicli doctor") if isinstance(error, Missing) else None
    if event("error", None, text=str(error), hint=error.hint, also=error.also, see=see, log=log,
             code=int(error.exit_code)):
        return
    _show(Text.assemble(("error: ", "bold red"), set_in(str(error))))
    for label, line in (("try", error.hint), *(("or", one) for one in error.also), ("see", see)):
        if line:
            stderr().print(Text.assemble((f"{label:>5}: ", "cyan"), set_in(line)), soft_wrap=True)  # to be copied
    if log:
        stderr().print(Text(set_in(f"  log: {log}"), style="dim"), soft_wrap=True)


def event(kind: str, console: Console | None = None, **fields: Any) -> bool:
    """Write one line of JSON if that is asked for, and say whether it was."""
    if manner().progress != "json":
        return False
    out = console.file if console else sys.stderr
    out.write(printable_json(json.dumps(finite({"event": kind, **fields}), allow_nan=False, default=str)) + "\n")
    out.flush()
    return True


def stderr(file: TextIO | None = None) -> Console:
    return Console(file=file or sys.stderr, highlight=False)


def _show(text: Text, console: Console | None = None) -> None:
    """At a terminal lines end between words, elsewhere where the text has it."""
    console = console or stderr()
    fits = all(cell_len(word) <= console.width for word in text.plain.split())
    console.print(text, soft_wrap=not (console.is_terminal and fits))  # a longer word is the terminal's to part


def finite(value: Any) -> Any:
    """A document for JSON: figures that it does not know are null."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def strange(text: str, style: str = "") -> Text:
    """Strangers' text for rich: nothing in it is markup, nothing commands the terminal."""
    return Text(printable(text), style=style)


def set_in(text: str) -> str:
    """Strangers' text for a line of ours; its own further lines are set in, so that none looks like one of ours."""
    return printable(text.replace("\r\n", "\n")).replace("\n", "\n    ")


def cell(value: Any) -> str:
    """A value as a table or a line of progress shows it."""
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)
