"""What is in a local folder: its files, their hashes, and one digest of it all."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from phicli.artifacts.reading import open_regular
from phicli.errors import BadInput
from phicli.progress import SILENT, Progress

_READ = 1 << 20  # bytes


@dataclass(frozen=True)
class LocalFile:
    """A file, its name inside the folder ("adapters/travel.onnx_adapter"), its size in bytes and its hash.

    stamp: which file it is, and when it was changed.
    """

    path: Path
    name: str
    size: int
    stamp: tuple[int, ...]
    sha256: str = ""

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open it for reading. Raises BadInput if it cannot be read or is not, to the end, the file that was listed."""
        try:
            with open_regular(self.path) as file:
                self._check(file)
                yield file
                self._check(file)
        except OSError as e:
            raise BadInput(f"cannot be read: {e.strerror}", where=self.path) from None

    def _check(self, file: BinaryIO) -> None:
        now = os.fstat(file.fileno())
        if (now.st_size, _stamp(now)) != (self.size, self.stamp):
            raise BadInput("changed while it was being uploaded", where=self.path)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_mtime_ns


@dataclass(frozen=True)
class Content:
    """A folder's files, sorted by name; `left_out` are the hidden ones, which are not part of a model."""

    files: tuple[LocalFile, ...]
    left_out: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(f.size for f in self.files)

    @cached_property
    def digest(self) -> str:
        """A hash of all names and contents, 64 hexadecimal digits."""
        return hashlib.sha256("".join(f"{f.sha256} {f.name}\n" for f in self.files).encode()).hexdigest()


def list_content(folder: Path) -> Content:
    """The files under a folder, not hashed yet. Ignore files have no say: nothing that is a model's is left out.

    Links inside the folder count as the files they lead to.

    Raises:
        BadInput: no such folder, or nothing in it; a link that leads out of it, to a folder or nowhere; a FIFO, a
            socket or a device.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput("no such folder", where=folder, hint="phicli optimize", also=["another --path"])
    files, hidden, inside = [], set(), folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            hidden.add(name.parts[0] if name.parts[0].startswith(".") else name.as_posix())
        elif path.is_symlink() or not path.is_dir():
            files.append(_listed(path, name.as_posix(), inside))
    if not files:
        raise BadInput("no files in it", where=folder)
    return Content(tuple(files), tuple(sorted(hidden)))


def list_file(path: Path, name: str) -> LocalFile:
    """One file under another name. Raises BadInput: no regular file."""
    return _listed(path, name, path.resolve().parent)


def _listed(path: Path, name: str, inside: Path) -> LocalFile:
    try:
        target = path.resolve(strict=True)
        found = target.stat()
    except (OSError, RuntimeError):  # the latter: links in a circle
        raise BadInput("a link to nothing" if path.is_symlink() else "cannot be read", where=path) from None
    if not target.is_relative_to(inside):
        raise BadInput(f"a link that leads out of the folder, to {target}", where=path,
                       hint="put a copy in its place, if it is part of the model")
    if not stat.S_ISREG(found.st_mode):
        raise BadInput("a link to a folder" if target.is_dir() else "not a regular file", where=path)
    return LocalFile(target, name, found.st_size, _stamp(found))


def hash_content(content: Content, progress: Progress = SILENT) -> Content:
    """The same content with every file's sha256.

    Raises:
        BadInput: a file that cannot be read.
    """
    files = []
    with progress.task("reading", content.bytes, "B") as bar:
        for file in content.files:
            digest = hashlib.sha256()
            with file.open() as f:
                while block := f.read(_READ):
                    digest.update(block)
                    bar.advance(len(block))
            files.append(replace(file, sha256=digest.hexdigest()))
    return Content(tuple(files), content.left_out)
