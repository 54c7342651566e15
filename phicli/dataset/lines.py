"""From bytes to numbered lines of UTF-8, in bounded memory; what every reader of rows is and gives."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from phicli.dataset.streams import ByteStream
from phicli.errors import BadInput

MAX_LINE = 16 << 20  # bytes; a row of this length is no row, and its tokens would take hundreds of megabytes
BLOCK = 1 << 20  # bytes taken at once

BOMS = (  # the longer ones first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
REFUSED = (
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"%PDF", "a PDF"),
    (b"SQLite format 3", "an SQLite database"),
    (b"FEA1", "an old Feather file"),
)
READABLE = "JSON Lines, a JSON array, CSV, TSV, Parquet or Arrow, plain or .gz, .zst, .bz2, .xz"


class Line(NamedTuple):
    """A row: its number, its bytes in UTF-8 (not checked) without the ending, and the ending.

    JSON Lines and tables number the line that it begins in, from 1; the others number their rows, from 1.
    fault: why it is none where its container says so; the data are no JSON object then.
    """

    number: int
    data: bytes
    ending: bytes = b"\n"
    fault: str | None = None


class Container:
    """The rows of a file, each a `Line` of one JSON object. Use it as a context manager; iterate once.

    Attributes:
        kind: what the file is, in words.
        textual: each row is a line of the file, so that endings and blank lines say something about it.
        numbers_rows: the number of a `Line` is that of the row, and not of a line in the file.
        name, size, done, compressed: see `ByteStream`.
        unnamed: of a table whose first line seems to be a row and no names: the command that puts names before it.
        bom: there is a byte order mark. encoding: such as "utf-8"; rows come in UTF-8 whatever it is.

    Raises:
        BadInput: as `ByteStream`; it is damaged; a row is over MAX_LINE.
    """

    kind = ""
    textual = False
    numbers_rows = False

    def __init__(self, stream: ByteStream):
        self.stream, self.name, self.compressed = stream, stream.name, stream.compressed
        self.bom, self.encoding = False, "utf-8"
        self.unnamed: str | None = None

    @property
    def size(self) -> int | None:
        return self.stream.size

    @property
    def done(self) -> int:
        return self.stream.done

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stream.close()

    def __iter__(self) -> Iterator[Line]:
        raise NotImplementedError


class LineReader(Container):
    """Lines of a text file, whose encoding is found from its first bytes.

    Lines end at LF, CRLF or CR, as a raw CR can stand in no JSON string.

    Raises:
        BadInput: as `Container`, or a binary file.
    """

    kind = "JSON Lines"
    textual = True

    def __init__(self, source: str | Path | ByteStream):
        super().__init__(source if isinstance(source, ByteStream) else ByteStream(source))

    def __iter__(self) -> Iterator[Line]:
        number, pending, held = 0, list[bytes](), 0
        for block in self._whole_endings():
            for piece in block.splitlines(keepends=True):
                pending.append(piece)
                held += len(piece)
                if held > MAX_LINE:
                    raise BadInput(f"a line of more than {MAX_LINE >> 20} MB", where=f"{self.name}:{number + 1}",
                                   hint="see docs/inspect.md: Memory and speed")
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
        first = first[self._recognize() :]
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

    def _recognize(self) -> int:
        """Find the encoding from the first bytes; returns the length of the byte order mark."""
        head = self.stream.head
        self.encoding, length = find_encoding(head)
        self.bom = length > 0
        what = next((name for magic, name in REFUSED if head.startswith(magic)), None)
        if what or (self.encoding == "utf-8" and b"\0" in head):
            raise BadInput(f"not a text file: it is {what or 'binary'}", where=self.name,
                           hint=f"rows are {READABLE}")
        return length

    def _blocks(self) -> Iterator[bytes]:
        for block in self.stream:
            for at in range(0, len(block), BLOCK):
                yield block[at : at + BLOCK]


def find_encoding(head: bytes) -> tuple[str, int]:
    """The encoding of a text with these first bytes, and the length of its byte order mark."""
    for bom, encoding in BOMS:
        if head.startswith(bom):
            return encoding, len(bom)
    even, odd = head[0:1024:2], head[1:1024:2]
    for nul, other, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if 2 * nul.count(0) > len(nul) and not other.count(0):
            return encoding, 0
    return "utf-8", 0


def _line(number: int, whole: bytes) -> Line:
    data = whole.rstrip(b"\r\n")
    return Line(number, data, whole[len(data) :])
