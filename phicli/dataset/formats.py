"""The formats that rows come in. Whatever the format, its reader gives each row as a numbered line of JSON.

To add one: a subclass of `LineReader` whose `__iter__` gives such lines, and an entry here.
"""

from collections.abc import Callable
from pathlib import Path

from phicli.dataset.lines import LineReader

READERS: dict[str, Callable[[str | Path], LineReader]] = {".jsonl": LineReader, ".json": LineReader}


def open_rows(path: str | Path) -> LineReader:
    """The reader of a file of rows, by the ending of its name, .gz not counted; JSON Lines where it says nothing.

    Args:
        path: a file, plain or gzip; "-" is stdin.

    Raises:
        BadInput: as `LineReader`.
    """
    return READERS.get(_ending(path), LineReader)(path)


def has_rows(path: str | Path) -> bool:
    """Whether a file's name says that there are rows in it, and not plain text."""
    return _ending(path) in READERS


def _ending(path: str | Path) -> str:
    return Path(str(path).lower().removesuffix(".gz")).suffix
