"""Rows by their number: checked and counted in one pass over the files, and read again when they are needed.

Of a row three numbers are kept, 20 bytes: where it lies, its line, and a hash of what it asks.
"""

import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from phicli.dataset.contents import Content, prompt_hash
from phicli.dataset.defects import Defect
from phicli.dataset.encoding import RowEncoder, RowSettings, row_parser
from phicli.dataset.formats import open_rows
from phicli.dataset.lines import Container, LineReader
from phicli.dataset.rows import parse, unusable
from phicli.errors import BadInput
from phicli.progress import SILENT, Progress
from phicli.text import Encoded

REPORTED = 1 << 12  # rows between two reports of progress


class Table:
    """Rows of one or more files.

    Raises:
        BadInput: no rows, or a row that cannot be used (named as file:line).
    """

    def __init__(self, files: Sequence[Path | str], settings: RowSettings, progress: Progress = SILENT):
        self.reader = row_parser(settings)
        self._files = [_File(file) for file in files]
        self._offsets, self._lines, self._keys = array("q"), array("i"), array("Q")
        self._ends: list[int] = []  # of each file's rows
        for file in self._files:
            self._read(file, progress)
            self._ends.append(len(self._offsets))
        if not self._offsets:
            raise BadInput("no rows", where=files[0] if files else None, hint=f"phicli inspect {files[0]}")

    def __len__(self) -> int:
        return len(self._offsets)

    def keys(self) -> np.ndarray:
        """uint64 (rows,): equal for rows that ask the same."""
        return np.frombuffer(self._keys, np.uint64)

    def content(self, number: int) -> Content:
        """What a row says. Raises BadInput: the file has changed meanwhile."""
        file = self._file(number)
        try:
            return self.reader.read(parse(file.line_at(self._offsets[number]))).content
        except Defect as e:
            raise unusable(file.name, self._lines[number], e) from None

    def encode(self, number: int, encoder: RowEncoder) -> Encoded:
        """Ids of a row. Raises BadInput: as `content`, or the encoder cannot encode it (named as file:line)."""
        content = self.content(number)
        try:
            return encoder.encode(content)
        except BadInput as e:
            where = f"{self._file(number).name}:{self._lines[number]}"
            raise BadInput(e.message, where=where, hint=e.hint or f"phicli inspect {self._file(number).name}") from None

    def _file(self, number: int) -> "_File":
        return self._files[int(np.searchsorted(self._ends, number, side="right"))]

    def _read(self, file: "_File", progress: Progress) -> None:
        with open_rows(file.path) as lines, progress.task(f"reading {file.name}", lines.size, "B") as task:
            done = 0
            for line in lines:
                offset = file.note(line, lines)
                if not line.data.strip():
                    continue
                try:
                    key = prompt_hash(self.reader.read(parse(line.data)))
                except Defect as e:
                    raise unusable(file.name, line.number, e) from None
                self._offsets.append(offset)
                self._lines.append(line.number)
                self._keys.append(key)
                if len(self._offsets) % REPORTED == 0:
                    task.advance(lines.done - done, rows=len(self._offsets))
                    done = lines.done
            task.advance(lines.done - done, rows=len(self._offsets))


class _File:
    """A file whose lines can be read again: plain UTF-8 lines as they are, all others from a copy without a name."""

    def __init__(self, path: Path | str):
        self.path, self.name = path, "stdin" if str(path) == "-" else str(path)
        self._again: BinaryIO | None = None
        self._copy: BinaryIO | None = None
        self._at = 0

    def note(self, line: Any, reader: Container) -> int:
        """Where the next line, this one, will be found."""
        if self._again is None:
            if type(reader) is LineReader and reader.size and reader.encoding == "utf-8" and not reader.compressed:
                self._at, self._again = 3 * reader.bom, Path(self.path).expanduser().open("rb")
            else:
                self._copy = self._again = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the table)
        offset = self._at
        if self._copy:
            self._copy.write(line.data + b"\n")
        self._at += len(line.data) + (1 if self._copy else len(line.ending))
        return offset

    def line_at(self, offset: int) -> bytes:
        assert self._again
        self._again.seek(offset)
        return self._again.readline().rstrip(b"\r\n")
