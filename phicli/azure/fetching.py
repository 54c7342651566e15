"""Files down: ranges, several at a time, written where they belong; what came before an interruption is kept.

A range counts when it is exactly what was asked for, of the blob that was listed; a file when its hash is the one in
the storage.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from phicli.azure.names import check_file_names
from phicli.azure.paging import listed
from phicli.azure.parallel import completed
from phicli.azure.part import Part, RemoteFile
from phicli.azure.staging import block_size
from phicli.azure.storage import Container
from phicli.azure.transport import RANGE
from phicli.errors import BadInput, Missing, RemoteError
from phicli.progress import SILENT, Progress, keeping

_READ = 1 << 20
AGAIN = "the same command again"


def list_files(container: Container, prefix: str) -> list[RemoteFile]:
    """The files of a model whose storage address ends in `prefix`: a folder, or one file.

    Raises:
        Missing: nothing there. BadInput: names that cannot be those of files in one folder.
        RemoteError: a list without an end, or of impossible files.
    """
    prefix = prefix.strip("/")
    blobs = container.call(lambda client: listed(client.list_blobs(name_starts_with=prefix, include=["metadata"])))
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
    check_file_names(file.name for file in files)
    return files


def _remote(blob: Any, name: str) -> RemoteFile:
    hashes = {}
    md5 = blob.content_settings.content_md5
    if md5:
        hashes["md5"] = bytes(md5).hex()
    if (blob.metadata or {}).get("sha256"):
        hashes = {"sha256": blob.metadata["sha256"]}
    if not isinstance(blob.size, int) or blob.size < 0 or not blob.etag:
        raise RemoteError(f"a file without a size or an ETag: {blob.size!r}, {blob.etag!r}", where=repr(name))
    return RemoteFile(blob.name, name, blob.size, blob.etag.strip('"'), tuple(hashes.items()))


def range_length(files: list[RemoteFile]) -> int:
    """Bytes of a range, all but the last of a file."""
    return min(RANGE, block_size(sum(f.size for f in files), 0))


def fetch_files(container: Container, files: list[RemoteFile], part: Part, step: int,
                progress: Progress = SILENT) -> int:
    """Fetch what has not come yet, in ranges of `step` bytes; returns the bytes fetched.

    Raises:
        RemoteError: an answer that is not what was asked for.
    """
    def todo():
        return ((f, *r) for f in files for r in f.ranges(step) if not part.has(f, *r))

    total, needed = sum(f.size for f in files), sum(length for _, _, length in todo())
    kept = "what has come is kept, and the same command goes on from there"
    with progress.task("downloading", total, "B") as bar, keeping(lambda: kept):
        bar.advance(total - needed)
        tasks = (partial(_fetch, container, part, *item) for item in todo())
        for file, offset, length, digest in completed(tasks, container.connections):
            part.add(file, offset, length, digest)
            bar.advance(length)
    return needed


def _fetch(container: Container, part: Part, file: RemoteFile, offset: int,
           length: int) -> tuple[RemoteFile, int, int, str]:
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceModifiedError

    def check(response: Any) -> None:
        answer = response.http_response
        if answer.status_code in (200, 206):
            _check_range(file, offset, length, answer.status_code, answer.headers)

    try:
        data = container.call(lambda client: client.get_blob_client(file.blob).download_blob(
            offset, length, validate_content=True, etag=f'"{file.etag}"', raw_response_hook=check,
            match_condition=MatchConditions.IfNotModified,
        ).readall())
    except ResourceModifiedError:
        raise RemoteError("changed in the storage while it was fetched", where=file.name, hint=AGAIN) from None
    if len(data) != length:
        raise RemoteError(f"{len(data):,} bytes came instead of {length:,}", where=file.name, hint=AGAIN)
    part.write(file, offset, data)
    return file, offset, length, hashlib.sha256(data).hexdigest()


def _check_range(file: RemoteFile, offset: int, length: int, status: int, headers: Any) -> None:
    """Raise RemoteError unless an answer's head promises this range of this blob, as it was listed."""
    if headers.get("etag", "").strip('"') != file.etag:
        raise RemoteError("changed in the storage while it was fetched", where=file.name, hint=AGAIN)
    found = (status, headers.get("content-range"), headers.get("content-length"))
    if found != (206, f"bytes {offset}-{offset + length - 1}/{file.size}", str(length)):
        raise RemoteError(f"not the range that was asked for: {found[1]}, {found[2]} bytes", where=file.name)


def damaged_files(files: list[RemoteFile], part: Part, step: int, progress: Progress = SILENT) -> list[RemoteFile]:
    """Those whose content on disk is not what the storage says it is, or, where that says nothing, what came."""
    wrong = []
    with progress.task("checking", sum(f.size for f in files), "B") as bar:
        for file in files:
            right = [_hash(part.files / file.name, how, bar.advance) == digest for how, digest in file.hashes]
            if not (all(right) if right else part.is_whole(file, step)):
                wrong.append(file)
    return wrong


def _hash(path: Path, algorithm: str, advance: Callable[[float], None]) -> str:
    digest = hashlib.new(algorithm)
    try:
        with path.open("rb") as f:
            while block := f.read(_READ):
                digest.update(block)
                advance(len(block))
    except FileNotFoundError:
        raise BadInput("was removed while it was fetched", where=path, hint=AGAIN) from None
    return digest.hexdigest()
