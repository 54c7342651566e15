"""The Progress that a person sees: one line a task at a terminal, lines from time to time elsewhere; or JSON."""

import contextlib
import time
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.text import Text

from phicli.cli.manner import manner
from phicli.cli.messages import cell, event, note, stderr, warn
from phicli.printable import printable
from phicli.progress import SILENT
from phicli.units import duration, number, rough_duration, size

FIRST, MOST = 10.0, 60.0  # seconds to the first line where there is no terminal, and between two at most
EVENTS = 0.2  # seconds between two events of one task, in JSON
SETTLED = 2.0  # seconds of work before a time left is told
BAR = (6, 24)  # columns, at least and at most


class Reporter:
    """What a command hands to library code.

    stopped_at: the task that an exception broke off, and how far it was.
    """

    def __init__(self, stream: TextIO):
        self.console, self.stopped_at, self.running = stderr(stream), "", list[Bar]()
        wants = manner()
        self.shows_bars = self.console.is_terminal and wants.progress == "auto" and not wants.verbose
        self.live = Live(get_renderable=self._picture, console=self.console, transient=True, refresh_per_second=8,
                         redirect_stdout=False, redirect_stderr=False)  # libraries' output is for the log

    def __enter__(self) -> "Reporter":
        if self.shows_bars and not manner().quiet:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.stop()

    def task(self, title: str, total: float | None = None, unit: str = "") -> contextlib.AbstractContextManager:
        if manner().quiet:
            return SILENT.task(title, total, unit)
        kind = Events if manner().progress == "json" else Bar if self.shows_bars else Lines
        return kind(self, title, total, unit)

    def note(self, text: str) -> None:
        note(text, self.console)

    def warn(self, text: str) -> None:
        warn(text, self.console)

    def _picture(self) -> Group:
        return Group(*(task.line(self.console.width - 1, running=True) for task in list(self.running)))


class Counted(contextlib.AbstractContextManager):
    """How far a task is, with which figures, and how much longer it may take."""

    def __init__(self, reporter: Reporter, title: str, total: float | None, unit: str):
        self.reporter, self.title, self.total, self.unit = reporter, title, total, unit
        self.done, self.figures = 0.0, dict[str, Any]()
        self.begun, self.last, self.weighted, self.moves = time.monotonic(), 0.0, 0.0, 0

    def advance(self, n: float = 1, **figures: Any) -> None:
        before, self.last = self.last, self.seconds()
        self.done += n
        self.figures.update(figures)
        self.weighted += n * (before + self.last) / 2
        self.moves += n > 0

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def left(self) -> float | None:
        """Seconds, by the speed so far: each second counts by how late it was, so that a slow start fades and a
        single slow step moves little; None while nothing can be told."""
        if not self.total or self.done >= self.total or self.last < SETTLED or self.moves < 3 or self.weighted <= 0:
            return None
        speed = 2 * self.weighted / self.last**2
        return max(0.0, (self.total - self.done) / speed - (self.seconds() - self.last))

    def amount(self) -> str:
        show = size if self.unit == "B" else number
        done = f"{show(self.done)}/{show(self.total)}" if self.total and self.done != self.total else show(self.done)
        return done + ("" if self.unit in ("", "B") else f" {self.unit}")

    def __exit__(self, kind: Any, *exc: object) -> None:
        self.end(kind is not None)

    def end(self, broken: bool) -> None:
        """Say how it ended."""
        if broken and not self.reporter.stopped_at:
            self.reporter.stopped_at = f"{self.title}, {self.amount()}"

    def line(self, width: int | None, running: bool = False) -> Text:
        """One line; of what does not fit, the bar goes first, then the figures, the last one first."""
        left = self.left() if running else None
        spent = rough_duration(self.seconds()) if running else duration(self.seconds())
        times = spent + (f", about {rough_duration(left)} left" if left is not None else "")
        title = Text(_one_line(f"{self.title}:"))
        room = 1000 if width is None else width - title.cell_len - cell_len(f" {self.amount()}  {times}")
        shown = ""
        for piece in (_one_line(f"  {name} {cell(value)}") for name, value in self.figures.items()):
            if cell_len(piece) > room:
                break
            shown, room = shown + piece, room - cell_len(piece)
        if room < 0:
            title.truncate(max(8, title.cell_len + room), overflow="ellipsis")
        bar = self._bar(room - 2) if running and self.total else Text()
        return Text.assemble(title, " ", bar, (_one_line(self.amount()), "green"), (shown, "cyan"),
                             (f"  {times}", "dim"), no_wrap=True, overflow="ellipsis")

    def _bar(self, room: int) -> Text:
        if room < BAR[0]:
            return Text()
        columns = min(room, BAR[1])
        full = round(columns * min(1.0, self.done / (self.total or 1)))
        sign = "-" if self.reporter.console.options.ascii_only else "━"
        return Text.assemble((sign * full, "green"), (sign * (columns - full), "dim"), "  ")


def _one_line(text: str) -> str:
    return printable(text).replace("\n", " ")


class Bar(Counted):
    """At a terminal: the line moves, and where the task ends, its result takes its place."""

    def __enter__(self) -> "Bar":
        self.reporter.running.append(self)
        return self

    def end(self, broken: bool) -> None:
        super().end(broken)
        self.reporter.running.remove(self)
        self.reporter.live.refresh()  # or what is printed would have the old picture below it
        self.reporter.console.print(self.line(self.reporter.console.width - 1))


class Lines(Counted):
    """Where there is no terminal: a line at the end, and ever more rarely before."""

    said = 0.0

    def advance(self, n: float = 1, **figures: Any) -> None:
        super().advance(n, **figures)
        if self.last - self.said >= min(MOST, max(FIRST, self.said)) and self.done != self.total:
            self._say()

    def _say(self) -> None:
        self.said = self.seconds()
        self.reporter.console.print(self.line(None), soft_wrap=True)

    def end(self, broken: bool) -> None:
        super().end(broken)
        self._say()


class Events(Counted):
    """For programs: lines of JSON."""

    said = 0.0

    def __enter__(self) -> "Events":
        self._say("begin")
        return self

    def advance(self, n: float = 1, **figures: Any) -> None:
        super().advance(n, **figures)
        if self.last - self.said >= EVENTS:
            self._say("advance")

    def end(self, broken: bool) -> None:
        super().end(broken)
        self._say("stopped" if broken else "end")

    def _say(self, kind: str) -> None:
        self.said, left = self.seconds(), self.left()
        done = int(self.done) if float(self.done).is_integer() else self.done
        event(kind, self.reporter.console, task=self.title, step=done, total=self.total, unit=self.unit,
              seconds=round(self.said, 3), left=None if left is None else round(left), figures=self.figures)
