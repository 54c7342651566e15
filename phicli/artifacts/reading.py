"""Reading files of strangers: regular files only, of bounded size, JSON that means one thing only."""

import json
import math
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from phicli.errors import BadInput

SMALL = 64 << 20  # bytes; more than any tokenizer, index or settings file has
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a FIFO without a writer would keep `open` waiting for ever


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading in binary mode. Links are followed, as users put models on other disks.

    Raises:
        BadInput: a folder, FIFO, socket or device, or a file that cannot be opened. FileNotFoundError: none there.
    """
    try:
        number = os.open(path, os.O_RDONLY | _NONBLOCK | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as e:
        raise BadInput(f"cannot be read: {getattr(e, 'strerror', None) or e}", where=path) from None
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise BadInput("is a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file", where=path)
    return os.fdopen(number, "rb")


def check_regular(folder: Path) -> None:
    """Raise BadInput if anything in a folder is neither a file nor a folder: a library that opens it may never end.

    Or if the folder is no longer there.
    """
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        raise BadInput("was removed meanwhile", where=folder) from None
    for path in paths:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BadInput("not a regular file", where=path)


def files_now(folder: Path) -> dict[str, os.stat_result]:
    """Relative name -> lstat of every file and link in a folder, links not followed, to which others may be writing.

    What goes while this looks is left out.
    """
    found = {}
    for where, _, names in os.walk(folder):
        for path in (Path(where, name) for name in names):
            with suppress(FileNotFoundError):
                found[path.relative_to(folder).as_posix()] = path.lstat()
    return found


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """The content of a file of at most `limit` bytes. Raises as `open_regular`, and BadInput where it is longer."""
    with open_regular(path) as file:
        try:
            found = file.read(limit + 1)
        except OSError as e:
            raise BadInput(f"cannot be read: {e.strerror}", where=path) from None
    if len(found) > limit:
        raise BadInput(f"more than {limit:,} bytes are not read", where=path)
    return found


def read_text(path: Path, limit: int = SMALL) -> str:
    """The content of a UTF-8 file, without a byte order mark. Raises as `read_bytes`; BadInput: no UTF-8."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise BadInput(f"not UTF-8: {e.reason} at byte {e.start}", where=path) from None


def read_json(path: Path, limit: int = SMALL) -> Any:
    """The document in a JSON file. Raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit), path)


def parse_json(text: str | bytes, where: str | Path) -> Any:
    """A JSON document that every parser reads alike: no key twice, no NaN, no number beyond 4,300 digits or 1e308.

    Time and memory grow linearly with the text.

    Raises:
        BadInput: not such a document, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=refuse_constant, parse_float=finite)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"not readable as JSON: {e}", where=where) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"the key {doubled(pairs)[:80]!r} is there twice")
    return found


def doubled(pairs: list[tuple[str, Any]]) -> str:
    """The first key of an object that was there before; there must be one."""
    seen: set[str] = set()
    return next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def refuse_constant(constant: str) -> Any:
    """For json's `parse_constant`: raises ValueError for NaN and Infinity, which Python alone takes for JSON."""
    raise ValueError(f"{constant} is no JSON")


def finite(digits: str) -> float:
    """For json's `parse_float`: the number. Raises ValueError where it is too large for a float."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is too large a number")
    return number
