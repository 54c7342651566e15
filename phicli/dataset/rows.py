"""From lines to rows. `read_rows` and `load_rows` are strict: the first line that is no row ends them."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from phicli.artifacts.reading import doubled, finite, refuse_constant
from phicli.dataset.formats import open_rows
from phicli.errors import BadInput
from phicli.text import TextTemplate


class Row(NamedTuple):
    """A JSON object and the number of its line."""

    line: int
    fields: dict[str, Any]


class Defect(Exception):
    """Why a line or a row cannot be used: a code of `findings.KINDS`, the field it is about, and details."""

    def __init__(self, code: str, message: str, field: str | None = None):
        super().__init__(message)
        self.code, self.message, self.field = code, message, field


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
                    raise _unusable(path, line.number, e) from None


def load_rows(path: str | Path, template: TextTemplate) -> list[dict[str, str]]:
    """All rows, each with the fields that the template names and no other.

    Raises:
        BadInput: as `read_rows`, no rows, or a row whose field is missing or is no text (named as file:line).
    """
    rows = []
    for row in read_rows(path):
        defect = next(defects(row.fields, template), None)
        if defect:
            raise _unusable(path, row.line, defect)
        rows.append({name: row.fields[name] for name in template.fields})
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


def defects(fields: Mapping[str, Any], template: TextTemplate) -> Iterator[Defect]:
    """What keeps a row from being put into the template: missing_field, not_text, lone_surrogate."""
    for name in dict.fromkeys(template.fields):
        if name not in fields:
            yield Defect("missing_field", f"no field '{name}', which the text template names", name)
        elif not isinstance(fields[name], str):
            yield Defect("not_text", f"'{name}' is {kind_of(fields[name])}, not text", name)
        elif not _encodable(fields[name]):
            yield Defect("lone_surrogate", f"'{name}' has half of a character (a lone surrogate)", name)


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return kinds.get(type(value), "a number")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Defect("duplicate_key", f"field {doubled(pairs)[:80]!r} stands there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=refuse_constant, parse_float=finite)


def _unusable(path: str | Path, line: int, defect: Defect) -> BadInput:
    what = {"bad_json": "broken JSON: ", "not_object": "not a JSON object: "}.get(defect.code, "")
    name = "stdin" if str(path) == "-" else path
    return BadInput(what + defect.message, where=f"{name}:{line}", hint=_inspect(path))


def _inspect(path: str | Path) -> str:
    return f"phicli inspect {shlex.quote(str(path))}"
