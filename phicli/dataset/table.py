"""Rows by their number: checked and counted in one pass over the files, and read again when they are needed.

Of a row 8 bytes are kept, where it lies; at first 8 more, a hash of what it asks.
"""

import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from phicli.dataset.defects import Defect
from phicli.dataset.encoding import RowEncoder, RowSettings, row_parser
from phicli.dataset.formats import open_rows
from phicli.dataset.lines import MAX_LINE, Container, Line, LineReader
from phicli.dataset.rows import named, parse, parse_line, unusable
from phicli.dataset.sources import Source
from phicli.dataset.understood import Content, prompt_hash
from phicli.errors import BadInput
from phicli.progress import SILENT, Progress
from phicli.text import Encoded

REPORTED = 1 << 12  # rows between two reports of progress
MOST_OPEN = 16


class Table:
    """Rows of one or more files.

    Args:
        sources: files, each with how many times its rows count; of a fraction some are chosen, always the same.

    Raises:
        BadInput: no rows, or a row that cannot be used (named as file:line).
    """

    def __init__(self, sources: Sequence[Source], settings: RowSettings, progress: Progress = SILENT):
        self.parser = row_parser(settings)
        self._files, self._again = [_File(source.path) for source in sources], _Again()
        self._offsets, self._keys = array("q"), array("Q")
        self._shifted, self._shifts = array("q"), array("q")  # row -> what to add for its line, from that row on
        self._ends: list[int] = []  # of each file's rows
        for file in self._files:
            self._read(file, progress)
            self._ends.append(len(self._offsets))
        if not self._offsets:
            raise BadInput("no rows", where=sources[0].path, hint=f"phicli inspect {sources[0].path}")
        self._numbers = None if all(source.weight == 1 for source in sources) else self._weighted(sources)

    @property
    def name(self) -> str:
        """The files, in words."""
        return self._files[0].name if len(self._files) == 1 else f"{len(self._files)} files"

    def __len__(self) -> int:
        return len(self._offsets) if self._numbers is None else len(self._numbers)

    def keys(self) -> np.ndarray:
        """uint64 (rows,): equal for rows that ask the same."""
        keys = np.frombuffer(self._keys, np.uint64)
        return keys if self._numbers is None else keys[self._numbers]

    def forget_keys(self) -> None:
        """Give their memory back, once rows are held out."""
        self._keys = array("Q")

    def _line(self, at: int) -> int:
        return at + self._shifts[bisect_right(self._shifted, at) - 1]

    def content(self, number: int) -> Content:
        """What a row says. Raises BadInput: the file has changed meanwhile."""
        at, file = self._place(number)
        try:
            return self.parser.read(parse(self._again.line_at(file, self._offsets[at]))).content
        except Defect as e:
            raise unusable(file.name, self._line(at), e, file.numbers_rows) from None

    def encode(self, number: int, encoder: RowEncoder) -> Encoded:
        """Ids of a row. Raises BadInput: as `content`, or the encoder cannot encode it (named as file:line)."""
        content = self.content(number)
        try:
            return encoder.encode(content)
        except BadInput as e:
            at, file = self._place(number)
            raise unusable(file.name, self._line(at), Defect("not_laid_out", e.message), file.numbers_rows) from None

    def _place(self, number: int) -> "tuple[int, _File]":
        at = number if self._numbers is None else int(self._numbers[number])
        return at, self._files[bisect_right(self._ends, at)]

    def _read(self, file: "_File", progress: Progress) -> None:
        with open_rows(file.path) as lines, progress.task(f"reading {file.name}", lines.size, "B") as task:
            done = 0
            for line in lines:
                offset = self._again.note(file, line, lines)
                if not line.data.strip():
                    continue
                with named(lines, line.number):
                    key = prompt_hash(self.parser.read(parse_line(line)))
                shift = line.number - len(self._offsets)
                if not self._shifts or self._shifts[-1] != shift:
                    self._shifted.append(len(self._offsets))
                    self._shifts.append(shift)
                self._offsets.append(offset)
                self._keys.append(key)
                if len(self._offsets) % REPORTED == 0:
                    task.advance(lines.done - done, rows=len(self._offsets))
                    done = lines.done
            task.advance(lines.done - done, rows=len(self._offsets))

    def _weighted(self, sources: Sequence[Source]) -> np.ndarray:
        """int32: the rows of all files, each as often as its file's weight says."""
        found, begin = [], 0
        for source, end in zip(sources, self._ends, strict=True):
            rows = np.arange(begin, end, dtype=np.int32)
            whole, part = divmod(source.weight, 1)
            found += [rows] * int(whole)
            if part:
                found.append(np.sort(np.random.default_rng(0).permutation(rows)[: max(1, round(part * len(rows)))]))
            begin = end
        return np.concatenate(found)


class _File:
    """A file. end: where what was read of it ends; copied: its rows are in the copy, and not read from it again."""

    def __init__(self, path: Path | str):
        self.path, self.name = path, "stdin" if str(path) == "-" else str(path)
        self.end, self.copied, self.numbers_rows = -1, False, False


class _Again:
    """Lines that are read again: those of plain UTF-8 files from there, all others from one copy without a name.

    Few files are open at a time, as there may be more than a process can open.
    """

    def __init__(self) -> None:
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the table)
        self._copied = 0  # bytes
        self._open: dict[Path | str, BinaryIO] = {}

    def note(self, file: _File, line: Line, lines: Container) -> int:
        """Where a file's next line, this one, will be found."""
        if file.end < 0:
            file.numbers_rows = lines.numbers_rows
            plain = type(lines) is LineReader and lines.size and lines.encoding == "utf-8" and not lines.compressed
            file.copied, file.end = not plain or line.ending == b"\r", 3 * lines.bom
        if file.copied:
            offset, self._copied = self._copied, self._copied + len(line.data) + 1
            self._copy.write(line.data + b"\n")
        else:
            offset, file.end = file.end, file.end + len(line.data) + len(line.ending)
        return offset

    def line_at(self, file: _File, offset: int) -> bytes:
        """The line that begins at an offset."""
        if file.copied:
            self._copy.seek(offset)
            return self._copy.readline().rstrip(b"\n")
        if file.path not in self._open:
            if len(self._open) == MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[file.path] = Path(file.path).expanduser().open("rb")
        stream = self._open[file.path]
        stream.seek(offset)
        return next(iter(stream.readline(MAX_LINE + 2).splitlines()), b"")  # a CR may end it before the LF
