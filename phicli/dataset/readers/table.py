"""Tables: CSV and its like, whose first line names the columns."""

import csv
import io
import json
import re
import shlex
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from phicli.dataset import lines
from phicli.dataset.lines import Line, LineReader
from phicli.errors import BadInput

DELIMITERS = ",\t;"
SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # Excel's first line
_SENTENCE = re.compile(r".{61,}|\S+\s.*[.!?…。]", re.DOTALL)  # hardly the name of a column
MOST_LINES = 1 << 17  # of a row


class TableReader(LineReader):
    """The rows of a table, numbered by the line in which each begins; cells are text, empty ones too,
    with LF for the line breaks in them.

    The delimiter is the one that makes most columns of the first line. Quoted cells may have line breaks in them. A row
    with more or fewer cells than there are columns is a row with a fault. So is a line with a wrong quotation mark, and
    reading goes on in the line after it, wherever the next mark may stand.

    Raises:
        BadInput: as `LineReader`; two columns of one name.
    """

    kind = "a table (CSV)"
    textual = False

    def __iter__(self) -> Iterator[Line]:
        self._lines = super().__iter__()
        self._again = deque[tuple[int, str]]()  # lines to be read once more, each with its number
        self._row: list[tuple[int, str]] = []  # the lines of the row
        header = next((text for text in self._texts() if text.strip()), "")
        given = SEPARATOR.fullmatch(header)
        if given:
            header = next((text for text in self._texts() if text.strip()), "")
        delimiter = given[1] if given else _delimiter(header)
        columns = split_header(header, delimiter)
        if twice := [name for name, times in Counter(columns).items() if times > 1]:
            line = self._row[-1][0]
            raise BadInput(f"two columns are called {twice[0][:80]!r}", where=f"{self.name}:{line}",
                           hint=self._renamed(_distinct(columns), delimiter, line + 1) or "give each a name of its own")
        if header and any(map(_SENTENCE.fullmatch, columns)) and not given:
            named = ["text"] if len(columns) == 1 else ["prompt", "response", *columns[2:]]
            named[2:] = [f"column {at}" for at in range(3, len(columns) + 1)]
            self.unnamed = self._renamed(named, delimiter, self._row[-1][0])
        rows = csv.reader(self._texts(), delimiter=delimiter, strict=True)
        while True:
            self._row.clear()
            try:
                cells = _next(rows)
            except csv.Error as e:
                yield Line(self._row[0][0], b'"', fault=f"wrong quotation marks: {e}")
                self._again.extendleft(reversed(self._row[1:]))
                rows = csv.reader(self._texts(), delimiter=delimiter, strict=True)
                continue
            if cells is None:
                return
            if len(cells) in (0, len(columns)) and not any(cells):  # Excel leaves lines of delimiters at the end
                continue
            if len(cells) == len(columns):
                yield Line(self._row[0][0], _json(dict(zip(columns, cells, strict=True))))
            else:
                yield Line(self._row[0][0], _json(cells), fault=f"cells: {len(cells)}, columns: {len(columns)}")

    def _renamed(self, names: list[str], delimiter: str, line: int) -> str | None:
        """The command that puts names of columns before the lines from one on; None where it would not do."""
        if self.compressed or self.encoding != "utf-8" or self.name == "stdin" or b"\n" not in self.stream.head:
            return None
        written = io.StringIO()
        csv.writer(written, delimiter=delimiter, lineterminator="").writerow(names)
        if _delimiter(written.getvalue()) != delimiter:
            return None
        rest = "tail -c +4" if self.bom and line == 1 else f"tail -n +{line}"
        return f"(echo {shlex.quote(written.getvalue())}; {rest} {shlex.quote(self.name)}) > rows.csv"

    def _texts(self) -> Iterator[str]:
        """The lines, until the row has too many of them."""
        length = 0
        while taken := self._take():
            length = length + len(taken[1]) if self._row else len(taken[1])
            self._row.append(taken)
            if length > lines.MAX_LINE or len(self._row) > MOST_LINES:
                return
            yield taken[1]

    def _take(self) -> tuple[int, str] | None:
        if self._again:
            return self._again.popleft()
        line = next(self._lines, None)
        return line and (line.number, line.data.decode("utf-8", "surrogateescape") + "\n")


def split_header(line: str, delimiter: str) -> list[str]:
    """The names of the columns; those without one are called by their position."""
    cells = _next(csv.reader([line], delimiter=delimiter)) or []
    return [cell.strip() or f"column {at}" for at, cell in enumerate(cells, 1)]


def _delimiter(header: str) -> str:
    """The one that makes most columns of a line."""
    return max(DELIMITERS, key=lambda each: len(split_header(header, each)))


def _distinct(columns: list[str]) -> list[str]:
    """The names, a number behind those that were there already."""
    found: list[str] = []
    for name in columns:
        again = (f"{name} {at}" for at in count(2))
        found.append(name if name not in found else next(other for other in again if other not in {*columns, *found}))
    return found


def is_clear_table(text: str) -> bool:
    """Whether a text is a table whatever it is called: no blank or end follows a separator in its first line, as in a
    sentence, and all of its rows have as many cells."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = _delimiter(header)
    sizes: list[int] = []
    with suppress(csv.Error):  # where the text is cut off
        sizes += (len(cells) for cells in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if any(cells))
    return delimiter + " " not in header + " " and len(sizes) > 1 and len(set(sizes)) == 1


def _next(rows: Iterator[list[str]]) -> list[str] | None:
    """The next row, None at the end. csv's own limit, of a cell, is the whole process's: it is lifted for the moment
    only, and rows have ours."""
    usual = csv.field_size_limit(2 * lines.MAX_LINE)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(usual)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
