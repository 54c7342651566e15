"""Rows that a program has in memory, as a file like any other."""

import itertools
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phicli.errors import BadInput, UsageError

FILE = "rows.jsonl"


@contextmanager
def as_named(value: Any) -> Iterator[Any]:
    """The path of a temporary file that has these rows; what is no rows, as it is.

    Args:
        value: a list or another iterable of dicts, such as a `datasets.Dataset`, or a table of pandas, Polars or
            PyArrow. A row is what a line of a JSONL file is.

    Raises:
        UsageError: several splits. BadInput: a row that JSON cannot say, or no dict.
    """
    rows = _rows_of(value)
    if rows is None:
        yield value
        return
    with tempfile.TemporaryDirectory(prefix="phicli-rows-") as folder:
        path = Path(folder, FILE)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{_line(number, row)}\n" for number, row in enumerate(rows, 1))
        yield str(path)


def _rows_of(value: Any) -> Iterable[Any] | None:
    if value is None or isinstance(value, str | bytes | os.PathLike):
        return None
    if isinstance(value, Mapping):
        if not value or any(_rows_of(split) is None for split in value.values()):
            return None  # of settings
        raise UsageError(f"has several splits: {', '.join(map(str, value))}; name one of them", where="rows")
    for name, keywords in (("to_dicts", {}), ("to_pylist", {}), ("to_dict", {"orient": "records"})):
        if hasattr(value, "columns") and callable(own := getattr(value, name, None)):
            found: Iterable[Any] = own(**keywords)
            return found
    if not isinstance(value, Iterable):
        return None
    rows = iter(value)
    first = [] if rows is value else list(itertools.islice(rows, 1))
    return itertools.chain(first, rows) if rows is value or (first and isinstance(first[0], Mapping)) else None


def _line(number: int, row: Any) -> str:
    if not isinstance(row, Mapping):
        raise BadInput(f"row {number} is {type(row).__name__}, and a dict is wanted", where="rows")
    try:
        return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise BadInput(f"row {number} cannot be said in JSON: {e}", where="rows") from None


def _plain(value: Any) -> Any:
    """What JSON has for what tables hold: numbers and arrays of NumPy, times, and nothing for a missing number."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    for name in ("tolist", "isoformat"):
        if callable(own := getattr(value, name, None)):
            return _plain(own())
    return value
