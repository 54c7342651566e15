"""What came of a model so far: a private folder beside the result, whose journal names each range with its hash.

What the journal says is compared with the bytes before it is believed, so that neither a kill nor a hand in the folder
makes a range count that is not there.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from phicli.artifacts.private import create_file
from phicli.artifacts.reading import read_text
from phicli.artifacts.stages import writing
from phicli.errors import BadInput, Missing

_HEAD = "phicli download 2"
_MOST = 256 << 20  # bytes of a journal; enough for 7 TB


@dataclass(frozen=True)
class RemoteFile:
    """A blob and its place in the model. etag: changes with its content. hashes: algorithm -> hexadecimal digits."""

    blob: str
    name: str
    size: int
    etag: str
    hashes: tuple[tuple[str, str], ...] = ()

    def ranges(self, length: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of each range."""
        for offset in range(0, self.size, length):
            yield offset, min(length, self.size - offset)


class Part:
    """The folder `.NAME.part` beside the folder NAME, with `journal` and `files`.

    Raises:
        BadInput: something of that name is there that no download of this user made.
    """

    def __init__(self, folder: Path):
        self.path = folder.with_name(f".{folder.name}.part")
        self.files, self.journal = self.path / "files", self.path / "journal"
        self._digests: dict[tuple[str, str, int, int], str] = {}
        with writing(self.path):
            with contextlib.suppress(OSError):
                self.path.rmdir()
            try:
                self.path.mkdir(mode=0o700)
            except FileExistsError:
                self._check_ours()
            else:
                with create_file(self.journal) as f:
                    f.write(_HEAD.encode() + b"\n")

    def prepare(self, files: list[RemoteFile], step: int) -> None:
        """Keep those ranges, of `step` bytes, that are whole; make all files in their full size.

        Raises:
            Missing: no space for the rest.
        """
        if not self._fits(files):
            with writing(self.path):
                shutil.rmtree(self.files)
        noted = self._read_journal(files, step)
        self._digests = {key: digest for key, digest in noted if self._hash(*key[1:]) == digest}
        needed = sum(file.size for file in files) - sum(length for _, _, _, length in self._digests)
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise Missing(f"not enough disk space: {needed:,} bytes to fetch, {free:,} free", where=self.path,
                          hint="another folder with --output, or the setting azure.cache")
        with writing(self.path):
            for file in files:
                path = self.files / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    create_file(path).close()
                os.truncate(path, file.size)
            self._write_journal()

    def has(self, file: RemoteFile, offset: int, length: int) -> bool:
        return (file.etag, file.name, offset, length) in self._digests

    def write(self, file: RemoteFile, offset: int, data: bytes) -> None:
        """Put a range where it belongs; called by many threads."""
        path = self.files / file.name
        try:
            with writing(path), path.open("r+b") as f:
                f.seek(offset)
                f.write(data)
        except FileNotFoundError:
            raise BadInput("was removed while it was fetched", where=path, hint="the same command again") from None

    def add(self, file: RemoteFile, offset: int, length: int, digest: str) -> None:
        """Note that a range is there; called by one thread."""
        self._digests[file.etag, file.name, offset, length] = digest
        with writing(self.journal), self.journal.open("a", encoding="utf-8") as f:
            f.write(_line(file.etag, file.name, offset, length, digest))

    def drop(self, file: RemoteFile) -> None:
        self._digests = {key: digest for key, digest in self._digests.items() if key[1] != file.name}
        with writing(self.journal):
            self._write_journal()

    def is_whole(self, file: RemoteFile, step: int) -> bool:
        """Whether the file on disk is what came from the storage, all of it."""
        path = self.files / file.name
        return path.is_file() and path.stat().st_size == file.size and all(
            self._digests.get((file.etag, file.name, *r)) == self._hash(file.name, *r) for r in file.ranges(step))

    def publish(self, folder: Path, record: Path) -> None:
        """Give the files their place, and what is in `self.path / record.name` its own; remove the rest."""
        with writing(folder):
            (self.path / record.name).replace(record)  # first, so that no folder is there that nothing tells of
            if folder.exists():
                shutil.rmtree(self.path / "old", ignore_errors=True)
                folder.rename(self.path / "old")
            self.files.rename(folder)
            shutil.rmtree(self.path, ignore_errors=True)

    def remove(self) -> None:
        """Remove what came, once it is elsewhere."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _check_ours(self) -> None:
        try:
            found, journal = self.path.lstat(), self.journal.lstat()
            ours = stat.S_ISDIR(found.st_mode) and stat.S_ISREG(journal.st_mode) and journal.st_nlink == 1
            if os.name != "nt":
                ours = ours and {found.st_uid, journal.st_uid} == {os.getuid()} and not found.st_mode & 0o022
            begun = not journal.st_size and list(self.path.iterdir()) == [self.journal]  # killed before its first line
            if ours and (begun or read_text(self.journal, _MOST).partition("\n")[0] == _HEAD):
                return
        except (OSError, BadInput):
            pass
        raise BadInput("is there and is no download of yours", where=self.path, hint="remove it, or another --output")

    def _fits(self, files: list[RemoteFile]) -> bool:
        """Whether there are only regular files and folders, and only those that belong to these files."""
        names = {file.name for file in files}
        folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
        if self.files.is_symlink():
            self.files.unlink()
        for where, inner, here in os.walk(self.files):
            at = Path(where).relative_to(self.files)
            if any((Path(where) / name).is_symlink() or (at / name).as_posix() not in folders for name in inner):
                return False
            for name in here:
                found = (Path(where) / name).lstat()
                if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or (at / name).as_posix() not in names:
                    return False
        return True

    def _read_journal(self, files: list[RemoteFile], step: int) -> Iterator[tuple[tuple[str, str, int, int], str]]:
        by_name = {file.name: file for file in files}
        for line in read_text(self.journal, _MOST).splitlines()[1:]:
            try:
                etag, name, offset, length, digest = json.loads(line)
                file = by_name[name]
                good = file.etag == etag and type(offset) is int and offset % step == 0 <= offset
                good = good and length == min(step, file.size - offset) > 0
            except (ValueError, TypeError, KeyError, RecursionError):  # a kill in the middle of a line
                continue
            if good:
                yield (etag, name, offset, length), digest

    def _hash(self, name: str, offset: int, length: int) -> str:
        try:
            with (self.files / name).open("rb") as f:
                f.seek(offset)
                return hashlib.sha256(f.read(length)).hexdigest()
        except OSError:
            return ""

    def _write_journal(self) -> None:
        fresh = self.path / "journal.new"
        fresh.unlink(missing_ok=True)
        with create_file(fresh) as f:
            f.write(f"{_HEAD}\n".encode())
            f.writelines(_line(*key, digest).encode() for key, digest in self._digests.items())
        fresh.replace(self.journal)


def _line(etag: str, name: str, offset: int, length: int, digest: str) -> str:
    return json.dumps([etag, name, offset, length, digest]) + "\n"
