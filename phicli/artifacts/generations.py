"""A folder's next generation: what has not changed is linked, and the switch from the old to the new is one step."""

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

TRIES = 20
EXCHANGE, HERE = 2, -100  # RENAME_EXCHANGE, AT_FDCWD
Result = TypeVar("Result")


def link_unchanged(old: Path, new: Path, kept: Callable[[str], bool]) -> None:
    """Give `new` the files of `old` whose names (relative, with /) are `kept`: linked, or copied where that fails.

    A file that is linked is the old one too, so none of these may be written to.
    """
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        if path.is_dir() and not path.is_symlink():
            (new / name).mkdir(exist_ok=True)
        elif kept(name.as_posix()):
            try:
                os.link(path, new / name, follow_symlinks=False)
            except (OSError, NotImplementedError):
                shutil.copy2(path, new / name, follow_symlinks=False)


def exchange(a: Path, b: Path) -> bool:
    """Let two folders of one file system change places, in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(HERE, os.fsencode(a), HERE, os.fsencode(b), EXCHANGE) == 0


def of_one_generation(folder: Path, work: Callable[[], Result]) -> Result:
    """What `work` gives that reads several files of a folder, done again if another folder took its place meanwhile."""
    for _ in range(TRIES):
        before = generation(folder)
        try:
            found = work()
        except Exception:  # of whatever kind: files went while they were read
            if generation(folder) == before:
                raise
        else:
            if generation(folder) == before:
                return found
    return work()


def generation(folder: Path) -> tuple[int, int, int] | None:
    """What tells a folder from another one that takes its place; None where there is none.

    The time of its last change belongs to it, since the inode of a folder that was removed is given to the next one.
    """
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns
