"""The built library's place: where only this user can write, under a name that says what is in it."""

import atexit
import ctypes
import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from phicli.artifacts.cache import user_cache
from phicli.artifacts.private import private_folder
from phicli.errors import Missing

NAME = "libops-{}.so"  # with the sha256 of what is in it
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # where the temporary folder is not to be had

_made: dict[str, Path] = {}  # temporary folders of this process


def kept_library(name: str, build: Callable[[Path], bytes]) -> tuple[Path, Missing | None]:
    """The library that was built before if it is as it was built, else a new one.

    It is compared with its hash, then loaded; in between nobody else can change it. It is kept in the user's cache
    folder. Where others can write there, it cannot be written, or code in it cannot be loaded, a temporary folder of
    this process takes its place.

    Args:
        name: of its folder, which stands for all that it is made of.
        build: makes it, in a folder that may be filled.

    Returns:
        its path, and why the next process has to build it again; None where it has not to.

    Raises:
        Missing: it cannot be built, or cannot be loaded from anywhere.
    """
    content: bytes | None = None
    kept, troubles = False, list[Missing]()
    for place in _places(name):
        try:
            folder = place()
        except (OSError, Missing) as e:
            troubles.append(e if isinstance(e, Missing) else Missing(str(e)))
            continue
        try:
            content, path = _whole(folder) or _placed_again(folder, place, content or build)
            kept = kept or not troubles
            ctypes.CDLL(str(path))  # fails where the file system lets no code run
            return path, None if kept else troubles[0]
        except OSError as e:
            troubles.append(Missing(str(e)))
    raise troubles[0]


def _places(name: str) -> Iterator[Callable[[], Path]]:
    yield lambda: private_folder(private_folder(user_cache()) / name)
    for base in (None, *TEMPORARY):
        yield functools.partial(_temporary, name, base)


def _temporary(name: str, base: str | None) -> Path:
    key = f"{name} {base}"
    if key not in _made or not _made[key].is_dir():
        _made[key] = Path(tempfile.mkdtemp(prefix="phicli-", dir=base))
        atexit.register(shutil.rmtree, _made[key], ignore_errors=True)
    return private_folder(_made[key])


def _whole(folder: Path) -> tuple[bytes, Path] | None:
    """What lies there and is as it was built; what is not is removed, and so is what another could have put there."""
    for path in folder.glob(NAME.format("*")):
        found = path.lstat()
        if (stat.S_ISREG(found.st_mode) and found.st_uid in (0, os.getuid()) and not found.st_mode & 0o022
                and found.st_nlink == 1):  # before the folder was as private as it is now
            content = path.read_bytes()
            if path.name == NAME.format(hashlib.sha256(content).hexdigest()):
                return content, path
        path.unlink(missing_ok=True)
    return None


def _placed_again(folder: Path, place: Callable[[], Path],
                  content: bytes | Callable[[Path], bytes]) -> tuple[bytes, Path]:
    """As `_placed`; once more where the folder was removed meanwhile, as `phicli rm cache/kernels` does."""
    try:
        return _placed(folder, content)
    except (OSError, Missing):  # the latter: of a compiler whose output has no place
        if folder.is_dir():
            raise
        return _placed(place(), content)


def _placed(folder: Path, content: bytes | Callable[[Path], bytes]) -> tuple[bytes, Path]:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        beside = Path(scratch, "beside")
        content = content if isinstance(content, bytes) else content(Path(scratch))
        beside.write_bytes(content)
        beside.chmod(0o700)
        return content, beside.replace(folder / NAME.format(hashlib.sha256(content).hexdigest()))
