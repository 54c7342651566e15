"""The containers that rows come in. Whatever it is, its reader gives each row as a numbered line of JSON.

To add one: a subclass of `Container` whose `__iter__` gives such lines, and the endings of its names in `READERS`; in
`_reader`, what its bytes look like if that tells.
"""

import re
from pathlib import Path

from phicli.dataset.lines import Container, LineReader, find_encoding
from phicli.dataset.readers.array import ArrayReader
from phicli.dataset.readers.columnar import ArrowReader, ParquetReader
from phicli.dataset.readers.table import DELIMITERS, TableReader, split_header
from phicli.dataset.streams import ByteStream

READERS: dict[str, type[Container]] = {
    ".jsonl": LineReader, ".ndjson": LineReader, ".json": LineReader, ".csv": TableReader, ".tsv": TableReader,
    ".parquet": ParquetReader, ".arrow": ArrowReader, ".feather": ArrowReader,
}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
MAGIC = {b"PAR1": ParquetReader, b"ARROW1": ArrowReader, b"\xff\xff\xff\xff": ArrowReader}  # the last: a stream
_ARRAY = re.compile(r"\s*\[\s*(\{|\]|$)")
_LINES_OF_ARRAYS = re.compile(r"\s*\[.*\][ \t]*\r?\n\s*\[")
_OBJECT = re.compile(r"^\s*\{", re.MULTILINE)
_COLUMN = re.compile(r"[\w .\-/#()?]{1,64}")


def open_rows(path: str | Path) -> Container:
    """The reader of a file of rows. What it is, its bytes say; if they do not, its name; if neither, JSON Lines.

    Args:
        path: a file, plain or compressed; "-" is stdin.

    Raises:
        BadInput: as `Container`.
    """
    stream = ByteStream(path)
    return _reader(stream.head, ending(path))(stream)


def has_rows(path: str | Path) -> bool:
    """Whether a file's name says that there are rows in it, and not plain text."""
    return ending(path) in READERS


def ending(path: str | Path) -> str:
    """The ending of a file's name, such as ".jsonl", in small letters; that of its compression is not counted."""
    name = Path(str(path).lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix


def _reader(head: bytes, ending: str) -> type[Container]:
    for magic, reader in MAGIC.items():
        if head.startswith(magic):
            return reader
    encoding, mark = find_encoding(head)
    text = head[mark:].decode(encoding, "ignore")
    if _ARRAY.match(text) and not _LINES_OF_ARRAYS.match(text):
        return ArrayReader
    if _OBJECT.match(text):
        return LineReader
    named = READERS.get(ending, LineReader)
    return TableReader if named is LineReader and _is_table(text) else named


def _is_table(text: str) -> bool:
    """Whether a text begins with a line of several names and a row under it, and no line begins like an object."""
    header, row = [*text[:1 << 14].splitlines(), "", ""][:2]
    for delimiter in DELIMITERS:
        names = split_header(header, delimiter)
        if len(names) > 1 and len(set(names)) == len(names) and all(map(_COLUMN.fullmatch, names)):
            return (delimiter in row or '"' in row) and not _OBJECT.search(text)
    return False
