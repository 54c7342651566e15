"""What is in a local folder: its files, their hashes, and one digest of it all."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phicli.errors import BadInput
from phicli.progress import SILENT, Progress

_READ = 1 << 20  # bytes


@dataclass(frozen=True)
class LocalFile:
    """A file, its name inside the folder ("adapters/travel.onnx_adapter"), its size in bytes and its hash."""

    path: Path
    name: str
    size: int
    modified_ns: int
    sha256: str = ""

    def check_unchanged(self) -> None:
        """Raises BadInput if the file is no longer the one that was hashed."""
        now = self.path.stat()
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified_ns):
            raise BadInput("changed while it was being uploaded", where=self.path)


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

    Raises:
        BadInput: no such folder, or nothing in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput("no such folder", where=folder, hint="phicli optimize makes it; or name another with --path")
    files, hidden = [], set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            hidden.add(name.parts[0] if name.parts[0].startswith(".") else name.as_posix())
        elif path.is_file():
            stat = path.stat()
            files.append(LocalFile(path, name.as_posix(), stat.st_size, stat.st_mtime_ns))
        elif path.is_symlink():
            raise BadInput("a link to nothing", where=path)
    if not files:
        raise BadInput("no files in it", where=folder)
    return Content(tuple(files), tuple(sorted(hidden)))


def hash_content(content: Content, progress: Progress = SILENT) -> Content:
    """The same content with every file's sha256.

    Raises:
        BadInput: a file that cannot be read.
    """
    files = []
    with progress.task("reading", content.bytes, "B") as bar:
        for file in content.files:
            digest = hash_file(file.path, bar.advance)
            files.append(LocalFile(file.path, file.name, file.size, file.modified_ns, digest))
    return Content(tuple(files), content.left_out)


def hash_file(path: Path, advance=lambda count: None) -> str:
    """sha256 of a file, 64 hexadecimal digits. Raises BadInput if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as f:
            while block := f.read(_READ):
                digest.update(block)
                advance(len(block))
    except OSError as e:
        raise BadInput(f"cannot be read: {e.strerror}", where=path) from None
    return digest.hexdigest()
