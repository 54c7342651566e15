"""From lines to rows. `read_rows` and `load_rows` are strict: the first line that is no row ends them."""

import json
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from phicli.artifacts.reading import doubled, finite, refuse_constant
from phicli.dataset.contents import Content, RowParser
from phicli.dataset.defects import Defect, kind_of
from phicli.dataset.formats import open_rows
from phicli.errors import BadInput


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
                try:
                    yield Row(line.number, parse(line.data))
                except Defect as e:
                    raise unusable(path, line.number, e) from None


def load_rows(path: str | Path, reader: RowParser, most: int | None = None) -> list[Content]:
    """What the rows of a file say, at most that many.

    Raises:
        BadInput: as `read_rows`, no rows, or a row that the reader does not understand (named as file:line).
    """
    rows: list[Content] = []
    for row in islice(read_rows(path), most):
        try:
            rows.append(reader.read(row.fields).content)
        except Defect as e:
            raise unusable(path, row.line, e) from None
    if not rows:
        raise BadInput("no rows", where=path, hint=_inspect(path))
    return rows


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


def unusable(path: str | Path, line: int, defect: Defect) -> BadInput:
    """The error for a row that cannot be used."""
    what = {"bad_json": "broken JSON: ", "not_object": "not a JSON object: "}.get(defect.code, "")
    name = "stdin" if str(path) == "-" else path
    return BadInput(what + defect.message, where=f"{name}:{line}", hint=_inspect(path))


def _inspect(path: str | Path) -> str:
    return f"phicli inspect {shlex.quote(str(path))}"
