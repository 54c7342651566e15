"""Creating files and folders where others can write too: nothing is followed, nothing of theirs is taken for ours."""

import contextlib
import os
import shlex
import stat
from pathlib import Path
from typing import BinaryIO

from phicli.errors import Missing

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


def create_file(path: Path, mode: int = 0o666) -> BinaryIO:
    """Create a file for writing, in binary mode, with `mode` less the umask; nothing may be there, not even a link.

    Raises:
        FileExistsError: something is. OSError: it cannot be created.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.fdopen(os.open(path, flags, mode), "wb")


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can write to, its missing parents too, and check that it is one.

    Returns:
        the absolute path, links resolved.

    Raises:
        Missing: it cannot be made, or somebody else could replace what is in it (`others_can_write`).
    """
    try:
        for parent in [p for p in reversed(path.parents) if not p.is_dir()] + [path]:  # `parents=True` minds no mode
            parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(OSError):
            if _ours(path) and path.lstat().st_mode & 0o077:
                path.chmod(0o700)
        path = path.resolve(strict=True)
        if not path.is_dir():
            raise Missing("no folder", where=path)
    except (OSError, RuntimeError) as e:
        raise Missing(f"no folder of one's own can be made: {getattr(e, 'strerror', None) or e}", where=path) from None
    if who := others_can_write(path):
        raise Missing(f"others can write to {who}", where=path, hint=f"chmod go-w {shlex.quote(str(who))}",
                      also=["another XDG_CACHE_HOME"])
    return path


def others_can_write(path: Path) -> Path | None:
    """The file or folder, `path` or one above it, through which another user could replace it; None where none.

    The same rule as OpenSSH's StrictModes: owned by root or this user, not writable for group or others, except in a
    folder with the sticky bit that lies above. A group may write that bears the user's name and has no other member,
    as where the umask is 002. On Windows, where modes say nothing, None.
    """
    if os.name == "nt":
        return None
    path = Path(path).resolve()
    for level, place in enumerate([path, *path.parents]):
        found = place.stat()
        writable = stat.S_IWOTH if _private_group(found.st_gid) else stat.S_IWOTH | stat.S_IWGRP
        shared = found.st_mode & writable and not (level and found.st_mode & stat.S_ISVTX)
        if found.st_uid not in (0, os.getuid()) or shared:
            return place
    return None


def _private_group(group: int) -> bool:
    """Whether a group is this user's alone."""
    import grp
    import pwd

    try:
        user, known = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return known.gr_name == user and set(known.gr_mem) <= {user}


def _ours(path: Path) -> bool:
    return os.name != "nt" and path.lstat().st_uid == os.getuid()
