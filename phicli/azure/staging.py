"""Files up: staged blocks, several at a time, each with its checksum; what is staged already is not sent again.

The folder in the storage is named by the content's digest, and a block by its place and its file's hash. So what an
interrupted upload left is exactly what the next one needs, and two uploads of the same content help each other.
A file appears when its block list is committed, whole.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from phicli.azure.content import Content, LocalFile
from phicli.azure.parallel import completed
from phicli.azure.storage import Container
from phicli.progress import SILENT, Progress, keeping

SMALLEST_BLOCK, LARGEST_BLOCK, MOST_BLOCKS = 256 << 10, 8 << 20, 50_000  # the last is the service's limit per file


def block_size(total: int, largest_file: int) -> int:
    """Bytes of a block: about 1/256 of the upload, so that what a cut line loses in flight stays small."""
    wanted = min(max(total // 256, SMALLEST_BLOCK), LARGEST_BLOCK)
    return max(wanted, -(-largest_file // MOST_BLOCKS))


@dataclass
class UploadPlan:
    """What one upload has to do. `ids`: of each file's blocks; `staged`: those that are there; `there`: whole files."""

    size: int
    ids: dict[str, list[str]]
    staged: dict[str, set[str]]
    there: set[str]

    def missing(self, file: LocalFile) -> Iterator[tuple[str, int, int]]:
        """(block id, offset, length) of the blocks to send."""
        if file.name in self.there:
            return
        for i, name in enumerate(self.ids[file.name]):
            if name not in self.staged[file.name]:
                yield name, i * self.size, min(self.size, file.size - i * self.size)


def plan_upload(container: Container, content: Content, prefix: str) -> UploadPlan:
    """Ask the storage what is there already."""
    size = block_size(content.bytes, max(f.size for f in content.files))
    plan = UploadPlan(size, {}, {}, set())
    for file in content.files:
        count = -(-file.size // size)
        plan.ids[file.name] = [f"{i:06d}-{size:010d}-{file.sha256[:32]}" for i in range(count)]

    def look(file: LocalFile) -> Callable[[], tuple[str, set[str] | None]]:
        return lambda: (file.name, container.call(lambda client: _staged(client, f"{prefix}/{file.name}", file)))

    for name, staged in completed(map(look, content.files), container.connections):
        plan.staged[name] = staged or set()
        if staged is None:
            plan.there.add(name)
    return plan


def _staged(client: Any, name: str, file: LocalFile) -> set[str] | None:
    """Ids of a blob's staged blocks; None if the blob is there as a whole, and right."""
    from azure.core.exceptions import ResourceNotFoundError

    blob = client.get_blob_client(name)
    try:
        have = blob.get_blob_properties()
        if have.size == file.size and (have.metadata or {}).get("sha256") == file.sha256:
            return None
    except ResourceNotFoundError:
        pass
    try:
        return {block.id for block in blob.get_block_list("uncommitted")[1]}
    except ResourceNotFoundError:
        return set()


def upload_content(container: Container, content: Content, prefix: str, plan: UploadPlan,
                   progress: Progress = SILENT) -> int:
    """Send what is missing and commit each file after its last block; returns the bytes sent.

    Raises:
        BadInput: a file that changed since it was hashed.
    """
    to_send = sum(length for f in content.files for _, _, length in plan.missing(f))
    sent = 0
    kept = "what was sent is kept there, and the same command goes on from there"
    with progress.task("uploading", content.bytes, "B") as bar, keeping(lambda: kept):
        bar.advance(content.bytes - to_send)
        for length in completed(_tasks(container, content, prefix, plan), container.connections):
            sent += length
            bar.advance(length)
    return sent


def _tasks(container: Container, content: Content, prefix: str, plan: UploadPlan) -> Iterator[Callable[[], int]]:
    """One task for every missing block, and one for a file of which only the block list is missing."""
    counting = threading.Lock()
    left: dict[str, int] = {}

    def stage(file: LocalFile, block: str, offset: int, length: int) -> int:
        data = _read(file, offset, length)
        container.call(lambda client: client.get_blob_client(f"{prefix}/{file.name}").stage_block(
            block, data, length=length, validate_content=True))
        with counting:
            left[file.name] -= 1
            last = not left[file.name]
        if last:
            commit(file)
        return length

    def commit(file: LocalFile) -> int:
        blocks = [BlobBlock(name) for name in plan.ids[file.name]]
        container.call(lambda client: client.get_blob_client(f"{prefix}/{file.name}").commit_block_list(
            blocks, metadata={"sha256": file.sha256}))
        return 0

    from azure.storage.blob import BlobBlock

    for file in content.files:
        missing = list(plan.missing(file))
        left[file.name] = len(missing)
        if not missing and file.name not in plan.there:
            yield partial(commit, file)
        for block in missing:
            yield partial(stage, file, *block)


def _read(file: LocalFile, offset: int, length: int) -> bytes:
    """A block of the file that was hashed: one whose name promises bytes that it does not hold would stay for ever."""
    with file.open() as f:
        f.seek(offset)
        return f.read(length)
