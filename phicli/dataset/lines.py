"""From a file, a gzip file or stdin to numbered lines of UTF-8 bytes, in bounded memory."""

import codecs
import gzip
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from phicli.artifacts.reading import open_regular
from phicli.errors import BadInput

MAX_LINE = 16 << 20  # bytes; a row of this length is no row, and its tokens would take hundreds of megabytes
BLOCK = 1 << 20  # bytes read at once

BOMS = (  # the longer ones first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
FORMATS = (
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\xfd7zXZ", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"%PDF", "a PDF"),
)


class Line(NamedTuple):
    """A line: its number from 1, its bytes in UTF-8 (not checked) without the ending, and the ending."""

    number: int
    data: bytes
    ending: bytes


class LineReader:
    """Lines of a text file; its encoding and compression are found from its first bytes.

    Lines end at LF, CRLF or CR, as a raw CR can stand in no JSON string. Use it as a context manager; iterate once.

    Attributes:
        name: what to call the file in messages.
        size: bytes of the file, None for a pipe. done: bytes of it that were read.
        bom: there is a byte order mark. encoding: such as "utf-8"; lines come in UTF-8 whatever it is.

    Raises:
        BadInput: no such file, a folder, not readable, a binary file, damaged compression, a line over MAX_LINE.
    """

    def __init__(self, path: str | Path):
        self.name = "stdin" if str(path) == "-" else str(path)
        self.size: int | None = None
        self.done = 0
        self.bom, self.encoding, self.compressed = False, "utf-8", False
        try:
            self._raw: Any = sys.stdin.buffer if str(path) == "-" else open_regular(Path(path).expanduser())
        except FileNotFoundError:
            raise BadInput("no such file", where=path,
                           hint="phicli config shows where the setting data comes from") from None
        with suppress(OSError):
            status = os.fstat(self._raw.fileno())
            self.size = status.st_size if stat.S_ISREG(status.st_mode) else None

    def __enter__(self) -> "LineReader":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._raw is not sys.stdin.buffer:
            self._raw.close()

    def __iter__(self) -> Iterator[Line]:
        number, pending, held = 0, list[bytes](), 0
        for block in self._whole_endings():
            for piece in block.splitlines(keepends=True):
                pending.append(piece)
                held += len(piece)
                if held > MAX_LINE:
                    raise BadInput(f"a line of more than {MAX_LINE >> 20} MB", where=f"{self.name}:{number + 1}",
                                   hint="a row must be one line; see docs/inspect.md")
                if piece.endswith((b"\n", b"\r")):
                    number += 1
                    yield _line(number, b"".join(pending) if len(pending) > 1 else piece)
                    pending, held = [], 0
        if pending:
            yield _line(number + 1, b"".join(pending))

    def _whole_endings(self) -> Iterator[bytes]:
        """Blocks of UTF-8 that never end between CR and LF."""
        held_back = b""
        for block in self._utf8():
            block = held_back + block
            held_back = b"\r" if block.endswith(b"\r") else b""
            yield block[:-1] if held_back else block
        if held_back:
            yield held_back

    def _utf8(self) -> Iterator[bytes]:
        blocks = self._blocks()
        first = next(blocks, b"")
        first = first[self._recognize(first) :]
        if self.encoding == "utf-8":
            yield first
            yield from blocks
            return
        decoder = codecs.getincrementaldecoder(self.encoding)("surrogatepass")
        try:
            yield decoder.decode(first).encode("utf-8", "surrogatepass")
            for block in blocks:
                yield decoder.decode(block).encode("utf-8", "surrogatepass")
            decoder.decode(b"", True)
        except UnicodeDecodeError as e:
            raise BadInput(f"not valid {self.encoding.upper()}: {e.reason}", where=self.name) from None

    def _recognize(self, head: bytes) -> int:
        """Find the encoding from the first bytes; returns the length of the byte order mark."""
        for bom, encoding in BOMS:
            if head.startswith(bom):
                self.bom, self.encoding = True, encoding
                return len(bom)
        even, odd = head[0:1024:2], head[1:1024:2]
        for nul, other, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
            if 2 * nul.count(0) > len(nul) and not other.count(0):
                self.encoding = encoding
                return 0
        what = next((name for magic, name in FORMATS if head.startswith(magic)), None)
        if what or b"\0" in head:
            raise BadInput(f"not a text file: it is {what or 'binary'}", where=self.name,
                           hint="rows are JSON Lines: one JSON object a line, plain or .gz")
        return 0

    def _blocks(self) -> Iterator[bytes]:
        stream = self._raw
        try:
            if self._raw.peek(2)[:2] == b"\x1f\x8b":
                self.compressed = True
                stream = gzip.GzipFile(fileobj=self._raw)
            while block := stream.read(BLOCK):
                self.done = self._raw.tell() if self.size else self.done + len(block)
                yield block
        except EOFError:
            raise BadInput("truncated: the compressed data end too early", where=self.name) from None
        except (OSError, zlib.error) as e:
            raise BadInput(f"cannot be read: {e}", where=self.name) from None


def _line(number: int, whole: bytes) -> Line:
    data = whole.rstrip(b"\r\n")
    return Line(number, data, whole[len(data) :])
