"""Files down: ranges, several at a time, written where they belong; what came before an interruption is kept.

A journal beside the files names the ranges that are on disk. A file counts when its hash is the one in the storage.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from phicli.artifacts.stages import writing
from phicli.azure.parallel import completed
from phicli.azure.staging import block_size
from phicli.azure.storage import RANGE, Container
from phicli.errors import BadInput, Missing, RemoteError
from phicli.progress import SILENT, Progress

_READ = 1 << 20


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


def list_files(container: Container, prefix: str) -> list[RemoteFile]:
    """The files of a model whose storage address ends in `prefix`: a folder, or one file.

    Raises:
        Missing: nothing there. BadInput: names that would lead out of the folder.
    """
    prefix = prefix.strip("/")
    blobs = container.call(lambda client: list(client.list_blobs(name_starts_with=prefix, include=["metadata"])))
    files = []
    for blob in blobs:
        if (blob.metadata or {}).get("hdi_isfolder") == "true":
            continue
        if blob.name == prefix:
            files.append(_remote(blob, prefix.rpartition("/")[2]))
        elif blob.name.startswith(prefix + "/"):  # not "model-2" beside "model"
            files.append(_remote(blob, blob.name[len(prefix) + 1:]))
    if not files:
        raise Missing("the model's files are gone from the storage", where=prefix)
    return files


def _remote(blob: Any, name: str) -> RemoteFile:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\n" in name:
        raise BadInput("a file name that leads out of the model's folder", where=repr(name))
    hashes = {}
    md5 = blob.content_settings.content_md5
    if md5:
        hashes["md5"] = bytes(md5).hex()
    if (blob.metadata or {}).get("sha256"):
        hashes = {"sha256": blob.metadata["sha256"]}
    return RemoteFile(blob.name, name, blob.size, blob.etag, tuple(hashes.items()))


class Journal:
    """Which ranges are on disk; lines of "etag, offset, length, name"."""

    def __init__(self, path: Path):
        self.path = path
        self.lines = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()

    def has(self, file: RemoteFile, offset: int, length: int) -> bool:
        return self._line(file, offset, length) in self.lines

    def add(self, file: RemoteFile, offset: int, length: int) -> None:
        self.lines.add(self._line(file, offset, length))
        with self.path.open("a", encoding="utf-8") as f:
            f.write(self._line(file, offset, length) + "\n")

    def drop(self, file: RemoteFile) -> None:
        self.lines = {line for line in self.lines if not line.endswith(f"\t{file.name}")}
        self.path.write_text("".join(line + "\n" for line in self.lines), encoding="utf-8")

    @staticmethod
    def _line(file: RemoteFile, offset: int, length: int) -> str:
        return f"{file.etag}\t{offset}\t{length}\t{file.name}"


def fetch_files(container: Container, files: list[RemoteFile], folder: Path, journal: Journal,
                progress: Progress = SILENT) -> int:
    """Fetch what is not on disk yet into the folder, and check it all; returns the bytes fetched.

    Raises:
        Missing: no space. RemoteError: a file that arrives damaged twice.
    """
    total = sum(f.size for f in files)
    step = min(RANGE, block_size(total, 0))
    todo = [(f, *r) for f in files for r in f.ranges(step) if not journal.has(f, *r)]
    needed = sum(length for _, _, length in todo)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Missing(f"not enough disk space: {needed:,} bytes to fetch, {free:,} free", where=folder,
                      hint="another folder with --output, or the setting azure.cache")
    for file in files:
        _reserve(folder / file.name, file.size)
    with progress.task("downloading", total, "B") as bar:
        bar.advance(total - needed)
        tasks = (partial(_fetch, container, folder, *item) for item in todo)
        for file, offset, length in completed(tasks, container.connections):
            journal.add(file, offset, length)
            bar.advance(length)
    return needed


def _reserve(path: Path, size: int) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as f:
            f.truncate(size)


def _fetch(container: Container, folder: Path, file: RemoteFile, offset: int,
           length: int) -> tuple[RemoteFile, int, int]:
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceModifiedError

    try:
        data = container.call(lambda client: client.get_blob_client(file.blob).download_blob(
            offset, length, validate_content=True, etag=file.etag, match_condition=MatchConditions.IfNotModified,
        ).readall())
    except ResourceModifiedError:
        raise RemoteError("changed in the storage while it was fetched", where=file.name,
                          hint="the same command again") from None
    with writing(folder / file.name), (folder / file.name).open("r+b") as f:
        f.seek(offset)
        f.write(data)
    return file, offset, length


def damaged_files(files: list[RemoteFile], folder: Path, progress: Progress = SILENT) -> list[RemoteFile]:
    """Those whose content on disk is not what the storage says it is."""
    wrong = []
    with progress.task("checking", sum(f.size for f in files), "B") as bar:
        for file in files:
            if any(_hash(folder / file.name, algorithm, bar.advance) != digest for algorithm, digest in file.hashes):
                wrong.append(file)
    return wrong


def _hash(path: Path, algorithm: str, advance: Callable[[float], None]) -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb") as f:
        while block := f.read(_READ):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
