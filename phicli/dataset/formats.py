"""The containers that rows come in. Whatever it is, its reader gives each row as a numbered line of JSON.

To add one: a subclass of `Container` whose `__iter__` gives such lines, and the endings of its names in `READERS`; in
`_reader`, what its bytes look like if that tells.
"""

import json
import re
import shlex
from pathlib import Path

from phicli.dataset.contents import RowParser
from phicli.dataset.defects import Defect
from phicli.dataset.lines import READABLE, Container, LineReader, find_encoding
from phicli.dataset.readers.array import ArrayReader
from phicli.dataset.readers.columnar import ArrowReader, ParquetReader
from phicli.dataset.readers.table import DELIMITERS, TableReader, is_clear_table, split_header
from phicli.dataset.streams import LOOK, ByteStream
from phicli.dataset.wrapped import Wrapped
from phicli.errors import BadInput

READERS: dict[str, type[Container]] = {
    ".jsonl": LineReader, ".ndjson": LineReader, ".json": LineReader, ".csv": TableReader, ".tsv": TableReader,
    ".parquet": ParquetReader, ".arrow": ArrowReader, ".feather": ArrowReader,
}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
MAGIC = {b"PAR1": ParquetReader, b"ARROW1": ArrowReader, b"\xff\xff\xff\xff": ArrowReader}  # the last: a stream
PROSE = {".txt": "plain text", ".md": "Markdown", ".yaml": "YAML", ".yml": "YAML", ".html": "HTML", ".xml": "XML"}
_ARRAY = re.compile(r"\s*\[\s*(\{|\]|$)")
_LINES_OF_ARRAYS = re.compile(r"\s*\[.*\][ \t]*\r?\n\s*\[")
_OBJECT = re.compile(r"^\s*\{", re.MULTILINE)
_SPREAD = re.compile(r'\{\s*\n\s*"|\{\s*"[^"\n]*"\s*:\s*[\[{]\s*\n')
_LIST = re.compile(r'"([A-Za-z_]\w*)"\s*:\s*\[\s*\{', re.ASCII)
_INDEX = re.compile(r'\{\s*"\d+"\s*:\s*\{')
_COLUMN = re.compile(r"[\w .\-/#()?]{1,64}")


def open_rows(path: str | Path) -> Container:
    """The reader of a file of rows. What it is, its bytes say; if they do not, its name; if neither, JSON Lines.

    Args:
        path: a file, plain or compressed; "-" is stdin.

    Raises:
        BadInput: as `Container`; a text that has no rows in it by its name; an object over several lines.
    """
    stream = ByteStream(path)
    reader = _reader(stream.head, ending(path))
    if reader is LineReader:
        try:
            _check_lines(stream, ending(path))
        except BaseException:
            stream.close()
            raise
    return reader(stream)


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
    text = _text(head)
    if _ARRAY.match(text) and not _LINES_OF_ARRAYS.match(text):
        return ArrayReader
    if _OBJECT.match(text):
        return LineReader
    named = READERS.get(ending, LineReader)
    whole = text.rpartition("\n")[0] if len(head) >= LOOK else text  # the last line may be cut off
    tabular = named is LineReader and _is_table(text) and (ending not in PROSE or is_clear_table(whole))
    return TableReader if tabular else named


def _text(head: bytes) -> str:
    encoding, mark = find_encoding(head)
    return head[mark:].decode(encoding, "ignore")


def _check_lines(stream: ByteStream, ending: str) -> None:
    """Raise BadInput, with what helps, for a text that is clearly no JSON Lines."""
    text = _text(stream.head).lstrip()
    if ending in PROSE and text and "\0" not in text and not _OBJECT.search(text):
        raise BadInput(f"{PROSE[ending]}, and no rows", where=stream.name,
                       hint=f"rows are {READABLE}; the name of a table ends in .csv or .tsv")
    line, more, _ = text.partition("\n")
    if not more or not line.startswith("{") or line.rstrip().endswith("}"):
        return
    try:
        fields, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        if len(stream.head) < LOOK or not _SPREAD.match(text):
            return
        key, end = _LIST.search(text), len(text)
        fields = {key[1]: [{"paragraphs": []} if '"paragraphs"' in text else {}]} if key else {}
        fields = {"0": {}} if _INDEX.match(text) else fields
    if "\n" in text[:end]:
        try:
            jq = "jq -c '.'"
            RowParser().read(fields)
        except Wrapped as e:
            jq = e.jq
        except Defect:
            pass
        file = "FILE" if stream.name == "stdin" else shlex.quote(stream.name)
        raise BadInput("a JSON object over several lines, where each row is a line", where=stream.name,
                       hint=f"{jq} {file} > rows.jsonl")


def _is_table(text: str) -> bool:
    """Whether a text begins with a line of several names and a row under it, and no line begins like an object."""
    header, row = [*text[:1 << 14].splitlines(), "", ""][:2]
    for delimiter in DELIMITERS:
        names = split_header(header, delimiter)
        if len(names) > 1 and len(set(names)) == len(names) and all(map(_COLUMN.fullmatch, names)):
            return (delimiter in row or '"' in row) and not _OBJECT.search(text)
    return False
