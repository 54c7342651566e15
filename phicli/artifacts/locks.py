"""One process at a time works on a stage folder; the next one waits and says for whom."""

import contextlib
import json
import os
import shlex
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from phicli.artifacts.places import real
from phicli.artifacts.reading import read_json
from phicli.errors import BadInput, Missing
from phicli.progress import Progress

POLL = 0.2  # seconds
LONGEST = 1 << 20  # bytes of a lock file; it holds a command line


@contextlib.contextmanager
def held(folder: Path, progress: Progress, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a stage folder (or file), after waiting for the process that has it; yields whether it does.

    The operating system frees the lock of a process that ends, however it ends. Where no lock can be made, nothing
    can be published either: the block runs without.

    Raises:
        BadInput: something else than a lock is there. Missing: a lock that this user may not take.
    """
    from filelock import FileLock, Timeout

    path = lock_path(folder)
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise BadInput("no lock of phicli's, but what stands where one is needed", where=path, hint="move it away")
    lock = FileLock(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            if wait:
                progress.note(f"waiting for {folder}: {holder(folder) or 'another process'} works on it")
                lock.acquire(poll_interval=POLL)
        except OSError as e:
            if wait and path.exists() and os.access(path.parent, os.W_OK):
                raise Missing(f"a lock that is not this user's: {e.strerror}", where=path,
                              hint="wait for its owner, or ask for its removal") from None
        if lock.is_locked:
            with contextlib.suppress(OSError):  # only what others are told
                _tell(path)
        yield lock.is_locked
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()  # before the release: who waits notices that the file is gone, and makes a new one
            lock.release()


def _tell(path: Path) -> None:
    """Write into the lock who has it; through no link, and into no file that has another name too."""
    with os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)), "w", encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_nlink == 1:
            file.truncate()
            file.write(json.dumps(_ourselves()))


def holder(folder: Path) -> str | None:
    """Who works on a stage folder now, in words; None where nobody does."""
    try:
        found = read_json(lock_path(folder), LONGEST)
        pid, host, text = int(found["pid"]), str(found["host"]), f"{found['command']}, since {found['since']}"
    except (BadInput, OSError, ValueError, KeyError, TypeError):
        return None
    if host != socket.gethostname():
        return f"process {pid} on {host} ({text})"
    return f"process {pid} ({text})" if alive(pid) else None


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    if os.name == "nt":
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def lock_path(folder: Path) -> Path:
    """The file that is locked: beside the folder itself, so that all names of it have one lock."""
    folder = real(folder)
    return folder.with_name(f".{folder.name}.lock")


def _ourselves() -> dict[str, object]:
    name, *arguments = sys.argv or [""]
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": shlex.join([Path(name).stem.replace("__main__", "phicli"), *arguments])}
