"""Answers at a terminal: Markdown, drawn block by block while it comes, and several answers side by side."""

import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from phicli.inference.answer import Answer
from phicli.printable import printable

Lines = list[list[Segment]]

EVERY = 0.06  # seconds between two drawings
SHARE = 0.2  # of the time that drawing may take, where blocks are long
GO_ON = {"bullet_list_open", "ordered_list_open", "code_block"}  # blocks that may go on after a blank line
LONGEST = 20_000  # characters of a block that is still taken for Markdown: parsing can take quadratic time
NARROWEST = 34  # columns of the terminal for one answer, where several stand side by side
GAP = 2


def at_terminal() -> bool:
    """Whether stdout is a terminal on which lines can be drawn again."""
    return sys.stdout.isatty() and not Console(file=sys.stdout).is_dumb_terminal


def summary(answer: Answer) -> str:
    """A short line on an answer's speed, and on how it ended if the model did not end it."""
    parts = [f"{answer.answer_tokens} tokens"]
    if answer.decode_rate:
        parts.append(f"{answer.decode_rate:.1f} tok/s")
    if answer.answer_tokens:
        parts.append(f"first token after {answer.first_token_seconds:.2f} s")
    ends = {"length": "cut at --max-new-tokens", "context": "the context is full", "interrupted": "stopped",
            "repetition": "ended as it loops"}
    parts += [ends[answer.finish_reason]] if answer.finish_reason in ends else []
    return "; ".join(parts)


class _Markdown(Markdown):
    """Strangers' Markdown: nothing is hidden (HTML, the targets of links), lines end where the model ends them."""

    def __init__(self, text: str):
        super().__init__("", code_theme="ansi_dark", justify="default")  # "left" fills lines with blanks
        self.parsed = _parser().parse(text)
        for token in self.parsed:
            for inner in token.children or ():
                if inner.type == "softbreak":
                    inner.type = "hardbreak"


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False, "maxNesting": 8}).enable(["table", "strikethrough"]).disable(
        ["link", "image", "autolink", "reference", "entity"])


def _blocks(text: str) -> tuple[list[str], list[str]]:
    """Blocks of Markdown in a text of whole lines: those that are complete, and those that may go on, one at most."""
    if len(text) > LONGEST:
        return [], [text]
    lines = text.split("\n")
    tops = [token for token in _parser().parse(f"{printable(text)}\nx") if token.level == 0 and token.map]
    starts = [token.map[0] for token in tops if token.map[0] < len(lines)] or [0]
    goes_on = tops[-1].map[0] < len(lines) or (len(tops) > 1 and tops[-2].type in GO_ON)
    blocks = ["\n".join(lines[start:end]) for start, end in pairwise([*starts, len(lines)])]
    return (blocks[:-1], blocks[-1:]) if goes_on else (blocks, [])


def _lines(text: str, console: Console, options: ConsoleOptions) -> Lines:
    """A text as lines of the terminal, one blank line between its blocks."""
    found: Lines = []
    complete, growing = _blocks(text)
    for block in (*complete, *growing):
        shown = printable(block)
        lines = console.render_lines(_Markdown(shown) if len(shown) <= LONGEST else Text(shown), options, pad=False)
        filled = [i for i, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        if filled:
            found += [[]] * bool(found) + lines[filled[0] : filled[-1] + 1]
    return found


class _Drawn:
    """Lines that are rendered already."""

    def __init__(self, lines: Lines):
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines:
            yield from line
            yield Segment.line()


class _Drawing:
    """A part of the terminal that is drawn again while texts come, at most as often as drawing is cheap."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stdout, highlight=False)
        self._live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False,
                          redirect_stderr=False)
        self._next = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """What stands there gives way to the whole, also of an answer that was broken off."""
        self._live.stop()
        self.finish()

    def draw(self) -> None:
        begun = time.monotonic()
        if begun >= self._next:
            self._live.update(_Drawn(self.lines(self.console.height - 1)), refresh=True)
            now = time.monotonic()
            self._next = now + max(EVERY, (now - begun) / SHARE)

    def lines(self, room: int | None) -> Lines:
        """What stands there now; with a room, at most as many lines."""
        raise NotImplementedError

    def finish(self) -> None:
        """Print the whole for good."""
        raise NotImplementedError


class Answering(_Drawing):
    """One answer. Blocks of its Markdown are printed when they are complete; the one that grows is drawn again."""

    def __init__(self) -> None:
        super().__init__()
        self._growing, self._printed = "", False

    def write(self, piece: str) -> None:
        self._growing += piece
        if "\n" in piece:
            whole, _, begun = self._growing.rpartition("\n")
            complete, growing = _blocks(whole)
            if any(map(str.strip, complete)):
                self._print("\n".join(complete))
                self._growing = "\n".join([*growing, begun])
        self.draw()

    def lines(self, room: int | None) -> Lines:
        lines = _lines(self._growing, self.console, self.console.options)
        return ([[]] * (self._printed and bool(lines)) + lines)[-(room or 0) :]

    def finish(self) -> None:
        self._print(self._growing)

    def _print(self, text: str) -> None:
        self._live.update(_Drawn([]))
        self._growing, self._next = text, 0.0
        lines = self.lines(None)
        self.console.print(_Drawn(lines), end="")
        self._printed = self._printed or bool(lines)


class Comparing(_Drawing):
    """Several answers: in columns, or one below the other where the terminal is narrow."""

    def __init__(self, titles: Sequence[str], raw: bool = False):
        super().__init__()
        self._titles, self._texts, self._raw = titles, [""] * len(titles), raw

    def write(self, number: int, piece: str) -> None:
        self._texts[number] += piece
        self.draw()

    def lines(self, room: int | None) -> Lines:
        count = len(self._texts)
        width = (self.console.width - GAP * (count - 1)) // count
        if width >= NARROWEST:
            return _beside([self._answer(n, width, room) for n in range(count)], width)
        each = room and max(3, room // count)
        return [line for n in range(count) for line in [*self._answer(n, self.console.width, each and each - 1), []]]

    def finish(self) -> None:
        self.console.print(_Drawn(self.lines(None)), end="")

    def _answer(self, number: int, width: int, room: int | None) -> Lines:
        """Title and text; of a text that is longer than the room, the end."""
        options = self.console.options.update(width=width)
        title = Text(printable(self._titles[number]), "bold underline", overflow="fold")
        text, head = self._texts[number].strip("\n"), self.console.render_lines(title, options, pad=False)
        body = self.console.render_lines(Text(printable(text)), options, pad=False) if self._raw else _lines(
            text, self.console, options)
        return head + body[-max(room - len(head), 1) :] if room else head + body


def _beside(columns: Iterable[Lines], width: int) -> Lines:
    columns = list(columns)
    return [[segment for lines in columns for segment in Segment.adjust_line_length(
                lines[i] if i < len(lines) else [], width + GAP, style=Style.null())]
            for i in range(max(map(len, columns)))]
