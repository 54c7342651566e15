"""Log files: beside the stages where that is a folder of this user's, else in a new private one."""

import contextlib
import io
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from phicli.artifacts.private import create_file


@contextlib.contextmanager
def log_file(command: str, root: Path) -> Iterator[tuple[Path, TextIO]]:
    """A new log and its path; phicli's own loggers write to it. One that stays empty is removed at the end.

    Nothing is followed and nothing is written to that was there: the last log of the command, a file of this user's,
    is removed first.

    Raises:
        OSError: there is no place for a log at all.
    """
    path, raw = _beside_stages(command, root) or _private(command)
    log = io.TextIOWrapper(raw, encoding="utf-8", errors="replace")
    try:
        with _logging_to(log):
            yield path, log
    finally:
        with contextlib.suppress(OSError):  # a full disk: what ended the command is worth more than its log
            log.flush()
        _remove_if_empty(path, os.fstat(log.fileno()))
        with contextlib.suppress(OSError):
            log.close()


@contextlib.contextmanager
def _logging_to(log: TextIO) -> Iterator[None]:
    logger, handler = logging.getLogger("phicli"), logging.StreamHandler(log)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _beside_stages(command: str, root: Path) -> tuple[Path, BinaryIO] | None:
    """None where there is no root yet, where the root is a model's own folder, or where somebody else's things are."""
    folder, path = root / "logs", root / "logs" / f"phicli-{command}.log"
    if not root.is_dir() or (root / "config.json").exists():
        return None
    try:
        folder.mkdir(exist_ok=True)
        if not _this_users(folder, stat.S_ISDIR):
            return None
        if os.path.lexists(path):
            if not _this_users(path, stat.S_ISREG):
                return None
            path.unlink()
        return path, create_file(path)
    except OSError:
        return None


def find_logs(root: Path) -> dict[str, Path]:
    """Command -> its last log beside the stages; only files of this user's."""
    found = {path.name.removeprefix("phicli-").removesuffix(".log"): path
             for path in sorted((root / "logs").glob("phicli-*.log"))}
    return {name: path for name, path in found.items() if _this_users(path, stat.S_ISREG)}


def _private(command: str) -> tuple[Path, BinaryIO]:
    path = Path(tempfile.mkdtemp(prefix=f"phicli-{command}-")) / f"{command}.log"
    return path, create_file(path)


def _this_users(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:  # the command has begun again, or its log stayed empty
        return False
    return kind(found.st_mode) and (os.name == "nt" or found.st_uid == os.getuid())


def _remove_if_empty(path: Path, ours: os.stat_result) -> None:
    """Another run of the command may have put its own log there meanwhile."""
    with contextlib.suppress(OSError):
        if not ours.st_size and os.path.samestat(path.lstat(), ours):
            path.unlink()
            if path.parent.name != "logs":
                path.parent.rmdir()
