"""Results that are more than a line: tables, lists, marked texts; words stay whole, whatever the width."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from phicli.cli.messages import cell, set_in, strange
from phicli.printable import printable

PLAIN_WIDTH = 200  # of tables that go to a file or a pipe, so that nothing is cut
SHORT, LEAST = 16, 24  # columns: a cell so short is never parted; a longer one has this much room at least


def result_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout. Columns whose cells are all numbers or figures like "12.3 s" are set right.

    At a terminal that is too narrow for it, each row is a card: its first cell, and under it the others by name.
    """
    cells = [[cell(value) for value in row] for row in rows]
    table = Table(title=title and Text(set_in(title)), title_justify="left", title_style="bold")
    for i, name in enumerate(columns):
        column = [name, *(row[i] for row in cells)]
        figures = bool(cells) and all(not text or text[0] in "0123456789-+.<" for text in column[1:])
        table.add_column(strange(name), justify="right" if figures and i else "left", overflow="fold",
                         min_width=_least_width(column))
    for row in cells:
        table.add_row(*map(strange, row))
    console = _stdout()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).minimum
    if console.is_terminal and needed > console.width:
        _print_cards(console, columns, cells, title)
    else:
        console.print(table)


def _least_width(texts: Sequence[str]) -> int:
    """Columns that a table's column needs for all words to be whole, and for short cells to be one line."""
    words = [cell_len(printable(word)) for text in texts for word in text.split()]
    lines = [cell_len(printable(line)) for text in texts for line in text.splitlines()]
    short = [length for length in lines if length <= SHORT]
    return max([0, *words, *short, min(max([0, *lines]), LEAST)])


def _print_cards(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    width = console.width - 2  # lines are set in
    if title:
        console.print(Text(set_in(title), "bold"))
    for first, *others in rows:
        console.print(Text(set_in(first), "bold"), soft_wrap=True)
        lines = [Text()]
        for name, value in zip(columns[1:], others, strict=True):
            piece = Text.assemble((f"{_one_line(name)} ", "dim"), set_in(value))
            if value and lines[-1] and lines[-1].cell_len + 3 + piece.cell_len > width:
                lines.append(piece)
            elif value:
                lines[-1].append(" · " if lines[-1] else "", "dim").append(piece)
        for line in filter(None, lines):
            _print_beside(console, Text(), line, 2)


def _print_beside(console: Console, label: Text, text: Text, column: int) -> None:
    """A label and beside it, from that column on, a text whose lines end between words; below it if that is narrow."""
    longest = max((cell_len(word) for word in text.plain.split()), default=0)
    if label and (longest > console.width - column or column > console.width // 2):
        console.print(label, soft_wrap=True)
        label, column = Text(), 4
    label.pad_right(column - label.cell_len)
    for line in text.wrap(console, max(1, console.width - column)):
        line.rstrip()
        console.print(label + line, soft_wrap=True)
        label = Text(" " * column)


def result_list(rows: Iterable[tuple[str, str]], title: str | None = None) -> None:
    """Names, each with a text of one or more lines beside it, on stdout; lines end between words."""
    rows, console = list(rows), _stdout()
    if title:
        console.print(Text("\n").append(set_in(title), "bold"), soft_wrap=True)
    column = 2 + max((cell_len(_one_line(name)) for name, _ in rows), default=0)
    for name, text in rows:
        _print_beside(console, Text(_one_line(name)), strange(text), column)


def result_marked(pieces: Iterable[tuple[str, bool]], title: str) -> None:
    """A text on stdout of which parts are marked: by colour and underlining, else by ⟦ and ⟧."""
    console = _stdout()
    plain = not console.is_terminal or not console.color_system or console.no_color
    text = Text()
    for piece, marked in pieces:
        shown = printable(piece)
        text.append(f"⟦{shown}⟧" if marked and plain else shown, "green underline" if marked else "")
    console.print(Text("\n").append(set_in(title), "bold"))
    console.print(text)


def result_lights(rows: Iterable[tuple[str, str, str, str | None]]) -> None:
    """Rows of (green, yellow or red; name; what was found; what cures it) on stdout: a table, or lines."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        for light, name, found, cure in rows:
            line = f"{light:6}  {set_in(name)}: {set_in(found)}" + (f"\n        try: {set_in(cure)}" if cure else "")
            sys.stdout.write(line + "\n")
        return
    rows = list(rows)
    column = 10 + max(cell_len(_one_line(name)) for _, name, *_ in rows)
    for light, name, found, cure in rows:
        label = Text.assemble((f"{light:6}  ", f"bold {light}"), _one_line(name))
        _print_beside(console, label, strange(found), column)
        if cure:
            _print_beside(console, Text(), Text.assemble(("try: ", "cyan"), printable(cure)), column)


def _one_line(name: str) -> str:
    """A stranger's name, for the place of a label."""
    return printable(name).replace("\n", " ")


def _stdout() -> Console:
    console = Console(file=sys.stdout, highlight=False)
    return console if console.is_terminal else Console(file=sys.stdout, highlight=False, width=PLAIN_WIDTH)
