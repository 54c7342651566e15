"""From lines to rows. `read_rows` and `load_rows` are strict: the first line that is no row ends them."""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from phicli.artifacts.reading import doubled, finite, refuse_constant
from phicli.dataset.contents import RowParser
from phicli.dataset.defects import Defect, kind_of
from phicli.dataset.formats import open_rows
from phicli.dataset.lines import Container, Line
from phicli.dataset.understood import Content
from phicli.errors import BadInput

NO_NAMES = "the first line seems to be a row, and no names of columns; what puts names before it"


class Row(NamedTuple):
    """A JSON object and the number of its line."""

    line: int
    fields: dict[str, Any]


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a file, one at a time; blank lines are passed over.

    Args:
        path: a file, plain or gzip; "-" is stdin.

    Raises:
        BadInput: as `open_rows`, or a line (named as file:line) that is no JSON object in valid UTF-8.
    """
    with open_rows(path) as lines:
        for line in lines:
            if line.data.strip():
                with named(lines, line.number):
                    fields = parse_line(line)
                yield Row(line.number, fields)


def load_rows(files: str | Path | Sequence[str | Path], parser: RowParser, most: int | None = None) -> list[Content]:
    """What the rows of files say, at most that many.

    Raises:
        BadInput: as `read_rows`, no rows, or a row that the parser does not understand (named as file:line).
    """
    rows: list[Content] = []
    files = [files] if isinstance(files, str | Path) else files
    for path in files:
        with open_rows(path) as lines:
            for line in lines:
                if most is not None and len(rows) >= most:
                    return rows
                if line.data.strip():
                    with named(lines, line.number):
                        rows.append(parser.read(parse_line(line)).content)
    if not rows:
        raise BadInput("no rows", where=files[0], hint=_inspect(files[0]))
    return rows


@contextmanager
def named(container: Container, number: int) -> Iterator[None]:
    """Raise BadInput, named with file and line, for a Defect in the block."""
    try:
        yield
    except Defect as e:
        if container.unnamed and e.code == "unknown_format":
            e = Defect(e.code, f"{e.message}; {NO_NAMES}: {container.unnamed}", e.field)
        raise unusable(container.name, number, e, container.numbers_rows) from None


def parse_line(line: Line) -> dict[str, Any]:
    """The JSON object in a line. Raises Defect: bad_row where its container says that it is none, or as `parse`."""
    if line.fault:
        raise Defect("bad_row", line.fault)
    return parse(line.data)


def parse(data: bytes) -> dict[str, Any]:
    """The JSON object in a line. Raises Defect: invalid_utf8, bad_json, duplicate_key, not_object."""
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise Defect("invalid_utf8", f"byte 0x{data[e.start]:02x} at position {e.start + 1} is no UTF-8") from None
    except json.JSONDecodeError as e:
        raise Defect("bad_json", f"{e.msg} at column {e.colno}") from None
    except (RecursionError, ValueError) as e:
        raise Defect("bad_json", str(e)) from None
    if not isinstance(value, dict):
        raise Defect("not_object", f"it is {kind_of(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Defect("duplicate_key", f"field {doubled(pairs)[:80]!r} stands there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=refuse_constant, parse_float=finite)


def unusable(name: str, number: int, defect: Defect, numbers_rows: bool = False) -> BadInput:
    """The error for a row that cannot be used; rows of files without lines have numbers of their own."""
    what = {"bad_json": "broken JSON: ", "not_object": "not a JSON object: "}.get(defect.code, "")
    where = f"{name}, row {number}" if numbers_rows else f"{name}:{number}"
    return BadInput(what + defect.message, where=where, hint=_inspect(name))


def _inspect(path: str | Path) -> str:
    return f"phicli inspect {shlex.quote(str(path))}"
