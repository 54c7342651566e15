"""All that a person sees: results on stdout, everything else on stderr. The only module that imports rich."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from phicli.artifacts.logs import log_file
from phicli.cli.diverted import diverted
from phicli.cli.printable import printable, printable_json
from phicli.errors import BadInput, Missing, PhicliError
from phicli.units import duration as duration
from phicli.units import size as size

PLAIN_WIDTH = 200  # of tables that go to a file or a pipe, so that nothing is cut
PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


def result(text: str) -> None:
    """One line of result on stdout, never wrapped or coloured; as it is, unless a terminal would interpret it."""
    sys.stdout.write((printable(text) if sys.stdout.isatty() else text) + "\n")
    sys.stdout.flush()


def result_json(document: Any) -> None:
    """One JSON document on stdout; figures that JSON does not know are null."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(_finite(document), indent=2, ensure_ascii=not unicode, allow_nan=False, default=str)
    result(printable_json(text))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def result_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout. Columns whose cells are all numbers or figures like "12.3 s" are set right."""
    cells = [[_cell(value) for value in row] for row in rows]
    table = Table(title=title and Text(_line(title)), title_justify="left", title_style="bold")
    for i, name in enumerate(columns):
        figures = bool(cells) and all(not row[i] or row[i][0] in "0123456789-+.<" for row in cells)
        table.add_column(_text(name), justify="right" if figures and i else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(_text, row))
    _stdout().print(table)


def result_list(rows: Iterable[tuple[str, str]], title: str | None = None) -> None:
    """Names, each with a text of one or more lines beside it, on stdout; lines end between words."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(_text(name), _text(text))
    console = _stdout()
    if title:
        console.print(Text("\n").append(_line(title), "bold"))
    console.print(table)


def result_marked(pieces: Iterable[tuple[str, bool]], title: str) -> None:
    """A text on stdout of which parts are marked: by colour and underlining, else by ⟦ and ⟧."""
    console = _stdout()
    plain = not console.is_terminal or not console.color_system or console.no_color
    text = Text()
    for piece, marked in pieces:
        shown = printable(piece)
        text.append(f"⟦{shown}⟧" if marked and plain else shown, "green underline" if marked else "")
    console.print(Text("\n").append(_line(title), "bold"))
    console.print(text)


def _stdout() -> Console:
    console = Console(file=sys.stdout, highlight=False)
    return console if console.is_terminal else Console(file=sys.stdout, highlight=False, width=PLAIN_WIDTH)


def result_lights(rows: Iterable[tuple[str, str, str, str | None]]) -> None:
    """Rows of (green, yellow or red; name; what was found; what cures it) on stdout: a table, or lines."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        for light, name, found, cure in rows:
            result(f"{light:6}  {_line(name)}: {_line(found)}" + (f"\n        try: {_line(cure)}" if cure else ""))
        return
    table = Table("", "", "found", "try", box=SIMPLE)
    for light, name, found, cure in rows:
        table.add_row(Text(light, style=f"bold {light}"), _text(name), _text(found),
                      _text(cure or "", style="cyan"))
    console.print(table)


def _text(text: str, style: str = "") -> Text:
    """Strangers' text for rich: nothing in it is markup, nothing commands the terminal."""
    return Text(printable(text), style=style)


def _line(text: str) -> str:
    """Strangers' text for a line of ours; its own further lines are set in, so that none looks like one of ours."""
    return printable(text.replace("\r\n", "\n")).replace("\n", "\n    ")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def note(text: str, console: Console | None = None) -> None:
    """One line on stderr that a person may want to know."""
    (console or _stderr()).print(Text(_line(text), style="dim"), soft_wrap=True)


def warn(text: str, console: Console | None = None) -> None:
    """One line on stderr that a person should know."""
    (console or _stderr()).print(Text.assemble(("warning: ", "yellow"), _line(text)), soft_wrap=True)


def following(command: str) -> None:
    """A command that comes next, on stderr, on one line that can be pasted."""
    _stderr().print(Text.assemble(("next: ", "cyan"), _line(command)), soft_wrap=True)


def failure(error: PhicliError) -> None:
    """What went wrong, where, and what helps."""
    console = _stderr()
    console.print(Text.assemble(("error: ", "bold red"), _line(str(error))), soft_wrap=True)
    if error.hint:
        console.print(Text.assemble(("  try: ", "cyan"), _line(error.hint)), soft_wrap=True)
    if isinstance(error, Missing):
        doctor = getattr(error, "see", "phicli doctor")
        console.print(Text.assemble(("  see: ", "cyan"), _line(doctor)), soft_wrap=True)
    log = getattr(error, "log", None)
    if log:
        console.print(Text(_line(f"  log: {log}"), style="dim"), soft_wrap=True)


def typed(text: str) -> str:
    """A text from the command line as UTF-8; where the locale is plain C, Python hands over its bytes one by one.

    Raises:
        BadInput: no UTF-8.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as e:
        raise BadInput(f"not UTF-8: {e}", where="the command line") from None


def can_ask() -> bool:
    """Whether there is a person at the terminal."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stderr.isatty())


def ask(question: str) -> str | None:
    """The answer that a person types, or None where nobody can be asked."""
    if not can_ask():
        return None
    return _stderr().input(_text(f"{question}: ")).strip() or None


def _stderr(file: TextIO | None = None) -> Console:
    return Console(file=file or sys.stderr, highlight=False)


@contextlib.contextmanager
def task_log(command: str, root: str | Path) -> Iterator["Reporter"]:
    """Long work: yields the Progress for library code, and sends all other output of libraries to a log file.

    An exception that passes through gets the log's path as its attribute `log`, if anything was logged.
    """
    with log_file(command, Path(root)) as (log_path, log):
        try:
            with diverted(log) as terminal, Reporter(terminal) as reporter:
                yield reporter
        except BaseException as e:
            with contextlib.suppress(OSError):
                log.flush()
            if os.fstat(log.fileno()).st_size:
                e.log = log_path  # type: ignore[attr-defined]
            raise


class _Figures(ProgressColumn):
    def render(self, task: Any) -> Text:
        return _text("  ".join(f"{k} {_cell(v)}" for k, v in task.fields.get("figures", {}).items()), style="cyan")


class _Done(ProgressColumn):
    def render(self, task: Any) -> Text:
        return _text(_amount(task.completed, task.total, task.fields.get("unit", "")), style="green")


def _amount(done: float, total: float | None, unit: str) -> str:
    show = size if unit == "B" else lambda n: f"{n:g}"
    return (f"{show(done)}/{show(total)}" if total else show(done)) + ("" if unit in ("", "B") else f" {unit}")


class Reporter:
    """The Progress that a person sees: rich bars on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO):
        self.console = _stderr(stream)
        bar = BarColumn(bar_width=min(24, max(4, self.console.width - 74)))  # one line in 80 columns
        self.bars = Progress(TextColumn("{task.description}", markup=False), bar, _Done(),
                             _Figures(Column(no_wrap=True)), TimeElapsedColumn(), TimeRemainingColumn(compact=True),
                             console=self.console, disable=not self.console.is_terminal,
                             redirect_stdout=False, redirect_stderr=False)  # libraries' output is for the log

    def __enter__(self) -> "Reporter":
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def task(self, title: str, total: float | None = None, unit: str = "") -> contextlib.AbstractContextManager:
        if self.console.is_terminal:
            return _Bar(self.bars, title, total, unit)
        return _Lines(self.console, title, total, unit)

    def note(self, text: str) -> None:
        note(text, self.console)

    def warn(self, text: str) -> None:
        warn(text, self.console)


class _Bar(contextlib.AbstractContextManager):
    def __init__(self, bars: Progress, title: str, total: float | None, unit: str):
        self.bars = bars
        self.id = bars.add_task(_line(title), total=total, unit=unit, figures={})

    def advance(self, n: float = 1, **figures: Any) -> None:
        shown = {**self.bars.tasks[self.bars.task_ids.index(self.id)].fields["figures"], **figures}
        self.bars.update(self.id, advance=n, figures=shown)

    def __exit__(self, *exc: object) -> None:
        self.bars.stop_task(self.id)
        self.bars.refresh()


class _Lines(contextlib.AbstractContextManager):
    def __init__(self, console: Console, title: str, total: float | None, unit: str):
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.done, self.figures = 0.0, {}  # type: ignore[var-annotated]
        self.begun = self.last = time.monotonic()

    def advance(self, n: float = 1, **figures: Any) -> None:
        self.done += n
        self.figures.update(figures)
        if time.monotonic() - self.last >= PLAIN_EVERY:
            self._line()

    def _line(self) -> None:
        self.last = time.monotonic()
        figures = "".join(f"  {k} {_cell(v)}" for k, v in self.figures.items())
        amount = _amount(self.done, self.total, self.unit)
        line = f"{self.title}: {amount}{figures}  {duration(self.last - self.begun)}"
        self.console.print(Text(_line(line)), soft_wrap=True)

    def __exit__(self, *exc: object) -> None:
        self._line()
