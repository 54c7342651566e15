"""What files hold, as hashes: every byte counts, all cores read, and unchanged large files are read once only."""

import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from phicli.artifacts.cache import user_cache
from phicli.artifacts.private import create_file, others_can_write, private_folder
from phicli.artifacts.reading import open_regular, read_bytes
from phicli.errors import BadInput, Missing

CHUNK = 16 << 20  # bytes that one thread hashes at a time
BLOCK = 1 << 20  # bytes that a thread holds in memory
REMEMBERED_FROM = 1 << 20  # bytes of a file; a smaller one is read sooner than looked up
SETTLED = 2 * 10**9  # ns since the last change; coarse clocks give two changes within that the same time
MOST = 10_000  # entries


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """sha256 of each file, 64 hexadecimal digits; of files above 16 MiB, sha256 of their 16 MiB chunks' sha256s.

    What was read before is not read again while the file's device, inode, size, time of modification and time of
    change are the same. That they change with every write, through a memory map too, is made sure of by `_watched`.
    Memory used: 1 MiB a core.

    Raises:
        OSError: a file that cannot be read.
    """
    begun = time.time_ns()
    before = [path.stat() for path in paths]
    found = {i: known for i, stat in enumerate(before) if (known := MEMORY.recall(stat))}
    unknown = [i for i in range(len(paths)) if i not in found]
    watched = {i for i in unknown if MEMORY.takes(before[i], begun) and _watched(paths[i], before[i])}
    chunks = [(i, start) for i in unknown for start in range(0, max(1, before[i].st_size), CHUNK)]
    digests: dict[int, list[bytes]] = {i: [] for i in unknown}
    for (i, _), digest in zip(chunks, _hash_chunks([(paths[i], start) for i, start in chunks]), strict=True):
        digests[i].append(digest)
    for i, parts in digests.items():
        found[i] = (parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()).hex()
    same = [i for i in watched if _identity(paths[i].stat()) == _identity(before[i])]
    MEMORY.remember([(before[i], found[i]) for i in same], begun)
    return [found[i] for i in range(len(paths))]


def _hash_chunks(chunks: list[tuple[Path, int]]) -> Iterable[bytes]:
    if len(chunks) < 2:
        return [_hash_chunk(*chunk) for chunk in chunks]
    pool = ThreadPoolExecutor(min(len(chunks), os.cpu_count() or 1))
    try:
        return list(pool.map(_hash_chunk, *zip(*chunks, strict=True)))
    finally:
        pool.shutdown(cancel_futures=True)  # at Ctrl-C the rest is not waited for


def _hash_chunk(path: Path, start: int) -> bytes:
    digest, left = hashlib.sha256(), CHUNK
    with open_regular(path) as f:
        f.seek(start)
        while left and (block := f.read(min(BLOCK, left))):  # reading and hashing let other threads run
            digest.update(block)
            left -= len(block)
    return digest.digest()


def _watched(path: Path, stat: os.stat_result) -> bool:
    """Whether from here on every write to the file changes its times.

    Where a page was written through a memory map, the times change with the first write only, until the page is on the
    disk; so it is brought there (on Linux, seen on ext4). What lies in memory only never is.
    """
    if sys.platform != "linux":
        return True
    if f"{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}" in _in_memory():
        return False
    try:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError:
        return False
    return True


@functools.cache
def _in_memory() -> set[str]:
    """The devices, "major:minor", of file systems without a disk; see proc(5) for the format."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {line.split()[2] for line in lines if line.partition(" - ")[2].split(" ")[0] in ("tmpfs", "ramfs")}


def _identity(stat: os.stat_result) -> str:
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


class Memory:
    """Hashes of large files by what the file system says about them, kept in the user's cache folder.

    An entry counts only if the file had not changed for a while when it was read, and if the clock has not been set
    back since: else another content could have the same times. A memory that cannot be read is empty, and so is one
    that others can write to, as they could hide damage; one that cannot be written stays as it is.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._entries: dict[str, tuple[str, int]] | None = None  # identity -> hash, when it was read (ns)

    def recall(self, stat: os.stat_result) -> str | None:
        """The hash of a file that has not changed since it was remembered."""
        if stat.st_size < REMEMBERED_FROM:
            return None
        if self._entries is None:
            self._entries = self._load()
        known, read_at = self._entries.get(_identity(stat), (None, 0))
        return known if read_at <= time.time_ns() else None

    def takes(self, stat: os.stat_result, begun: int) -> bool:
        """Whether a file is one to remember if its reading begins at `begun` (ns of the clock)."""
        return stat.st_size >= REMEMBERED_FROM and max(stat.st_mtime_ns, stat.st_ctime_ns) + SETTLED < begun

    def remember(self, found: Iterable[tuple[os.stat_result, str]], begun: int) -> None:
        """Keep hashes of files that `takes` has taken, whose reading began at `begun`."""
        new = {_identity(stat): (known, begun) for stat, known in found}
        if new and self.path:
            merged = sorted({**self._load(), **new}.items(), key=lambda entry: entry[1][1])[-MOST:]
            self._entries = dict(merged)
            with contextlib.suppress(OSError, Missing):
                self._save(self._entries)

    def _load(self) -> dict[str, tuple[str, int]]:
        """The first line is the hash of the rest, so that damage is noticed."""
        try:
            if not self.path or self.path.is_symlink() or others_can_write(self.path):
                return {}
            digest, text = read_bytes(self.path).split(b"\n", 1)
            if digest.decode() != hashlib.sha256(text).hexdigest():
                return {}
            return {name: (str(known), int(read_at)) for name, (known, read_at) in json.loads(text).items()}
        except (OSError, BadInput, ValueError, TypeError, AttributeError):
            return {}

    def _save(self, entries: dict[str, tuple[str, int]]) -> None:
        assert self.path is not None
        text = json.dumps(entries).encode()
        private_folder(self.path.parent)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with create_file(beside, 0o600) as file:
                file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
            beside.replace(self.path)
        finally:
            beside.unlink(missing_ok=True)


def _place() -> Path | None:
    try:
        return user_cache() / "hashes"
    except Missing:
        return None


MEMORY = Memory(_place())


@contextlib.contextmanager
def reading_all() -> Iterator[None]:
    """Every file is read in this block, whatever is remembered: finds what a disk has lost by itself."""
    before = MEMORY.path, MEMORY._entries
    MEMORY.path, MEMORY._entries = None, {}
    try:
        yield
    finally:
        MEMORY.path, MEMORY._entries = before
