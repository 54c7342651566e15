"""One process at a time works on a stage folder; the next one waits and says for whom."""

import contextlib
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from phicli.artifacts.reading import read_json
from phicli.errors import BadInput
from phicli.progress import Progress

POLL = 0.2  # seconds


@contextlib.contextmanager
def held(folder: Path, progress: Progress, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a stage folder (or file), after waiting for the process that has it; yields whether it does.

    The operating system frees the lock of a process that ends, however it ends. Where no lock can be made, nothing
    can be published either: the block runs without.
    """
    from filelock import FileLock, Timeout

    path = _lock_path(folder)
    lock = FileLock(path)
    try:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if wait:
                    progress.note(f"waiting for {folder}: {holder(folder) or 'another process'} works on it")
                    lock.acquire(poll_interval=POLL)
        if lock.is_locked:
            with contextlib.suppress(OSError):  # only what others are told
                path.write_text(json.dumps(_ourselves()), encoding="utf-8")
        yield lock.is_locked
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()  # before the release: who waits notices that the file is gone, and makes a new one
            lock.release()


def holder(folder: Path) -> str | None:
    """Who works on a stage folder now, in words; None where nobody does."""
    try:
        found = read_json(_lock_path(folder), limit=1 << 16)
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


def _lock_path(folder: Path) -> Path:
    folder = Path(folder).absolute()
    return folder.with_name(f".{folder.name}.lock")


def _ourselves() -> dict[str, object]:
    name, *arguments = sys.argv or [""]
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": shlex.join([Path(name).stem.replace("__main__", "phicli"), *arguments])}
