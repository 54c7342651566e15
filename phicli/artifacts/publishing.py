"""Results appear whole or not at all: made in a marked folder of our own beside their place, then renamed into it."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phicli.artifacts.generations import exchange
from phicli.artifacts.locks import alive, lock_path
from phicli.artifacts.places import check_file_place, check_folder_place, real
from phicli.artifacts.private import create_file
from phicli.artifacts.reading import read_json
from phicli.errors import BadInput, Missing, PhicliError

MARKER = ".phicli-unfinished.json"  # in a temporary folder of ours: whose it is; only such folders are ever removed
FRESH, OLD = "new", "old"


@contextlib.contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well and is removed if not.

    What was at `folder` stays until then, whatever happens; `settle` cleans up after a kill. A link to a folder stays,
    and the result takes the place of that folder. Files get the modes that new files of this user have.

    Raises:
        Missing: no space or no permission. BadInput: something else than a folder stands there.
    """
    folder, place = Path(folder), real(folder)
    check_folder_place(folder)
    with beside(folder) as scratch, writing(folder):
        fresh = scratch / FRESH
        fresh.mkdir()
        yield fresh
        _usual_modes(scratch, fresh)
        check_folder_place(folder)
        if not exchange(fresh, place):
            if place.exists():
                place.rename(scratch / OLD)
            fresh.rename(place)


@contextlib.contextmanager
def publishing_file(path: Path) -> Iterator[Path]:
    """The path of a file to write, which takes the place of `path` when the block ends well and is removed if not.

    Raises:
        Missing: no space or no permission. BadInput: a link, a folder or a device stands there.
    """
    path = Path(path)
    check_file_place(path)
    with beside(path) as scratch, writing(path):
        fresh = scratch / FRESH
        yield fresh
        _usual_modes(scratch, fresh)
        check_file_place(path)
        fresh.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or all of the new. Raises as `publishing_file`."""
    with publishing_file(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A folder of our own on the file system of `target`, hidden, closed to others, and gone after the block.

    Raises:
        Missing: no space or no permission.
    """
    place = real(target)
    with writing(target), _taking_files(target):
        place.parent.mkdir(parents=True, exist_ok=True)
        settle(place)
        scratch = place.with_name(f".{place.name}.new-{secrets.token_hex(8)}")
    try:  # an interrupt may come as soon as the folder is there
        with writing(target), _taking_files(target):
            scratch.mkdir(mode=0o700)
        with writing(target), create_file(scratch / MARKER) as marker:
            marker.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield scratch
    finally:
        _undo(scratch, place)


@contextlib.contextmanager
def _taking_files(target: Path) -> Iterator[None]:
    """Raises Missing where a folder cannot be made in one that is there: in a file system like /proc."""
    try:
        yield
    except FileNotFoundError:
        raise Missing("cannot be written: its folder takes no files", where=target, hint="name another") from None


def settle(target: Path, alone: bool = False) -> None:
    """Undo what a killed process left beside this place: half-made results go, a displaced result returns.

    alone: nobody else can be at work on it now, so that all that lies there is left over. Else what belongs to a
    living process, or to another machine, whose processes cannot be seen, stays.
    """
    place = real(target)
    for scratch, owner in _unfinished(place).items():
        if alone or (owner["host"] == socket.gethostname() and not alive(owner["pid"])):
            _undo(scratch, place)


def leftovers(target: Path) -> list[Path]:
    """What lies beside a finished result that only an unfinished one needs, and the lock of a dead process."""
    lock = lock_path(target)
    return ([lock] if lock.exists() else []) + list(_unfinished(real(target)))


def _unfinished(place: Path) -> dict[Path, dict[str, Any]]:
    """The temporary folders of this user beside a place, and the process that made each."""
    name = re.compile(re.escape(f".{place.name}.new-") + "[0-9a-f]{16}")
    found = {}
    for path in place.parent.iterdir() if place.parent.is_dir() else ():
        if name.fullmatch(path.name) and not path.is_symlink():
            with contextlib.suppress(OSError, BadInput, KeyError, TypeError, ValueError):
                if os.name == "nt" or path.stat().st_uid == os.getuid():
                    owner = read_json(path / MARKER)
                    found[path] = {"pid": int(owner["pid"]), "host": str(owner["host"])}
    return found


def _undo(scratch: Path, place: Path) -> None:
    """Put back what was displaced, if nothing has taken its place, and remove the folder, its marker at last."""
    if (scratch / OLD).is_dir() and not os.path.lexists(place):
        (scratch / OLD).rename(place)
    with contextlib.suppress(OSError):
        for path in [p for p in scratch.iterdir() if p.name != MARKER]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        (scratch / MARKER).unlink(missing_ok=True)
        scratch.rmdir()


def _usual_modes(scratch: Path, fresh: Path) -> None:
    """Libraries that write through private temporary files leave these files' modes; the marker has the usual one."""
    usual = (scratch / MARKER).stat().st_mode & 0o666
    for path in [fresh, *fresh.rglob("*")]:
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 != usual:
            path.chmod(usual)


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into a Missing error that names the place."""
    try:
        yield
    except PhicliError:
        raise
    except Exception as e:
        refused = re.search(r"os error (\d+)", str(e))  # of safetensors, which is written in Rust
        number = e.errno if isinstance(e, OSError) else int(refused[1]) if refused else None
        if number in _REFUSALS:
            raise Missing(f"cannot be written: {os.strerror(number)}", where=where, hint=_REFUSALS[number]) from e
        raise


_REFUSALS = {
    28: "free some space, or choose another folder with --root or --output",  # ENOSPC
    27: "the file system or a limit allows no file of that size",  # EFBIG
    122: "free some space, or choose another folder with --root or --output",  # EDQUOT
    13: "choose another folder with --root or --output",  # EACCES
    1: "choose another folder with --root or --output",  # EPERM
    30: "choose another folder with --root or --output",  # EROFS
    20: "a file stands where a folder is needed",  # ENOTDIR
    17: "a file stands where a folder is needed",  # EEXIST
}
