"""Hashes of files, and the memory of them."""

import hashlib
import os
import time

import pytest

from phicli.artifacts import hashing
from phicli.artifacts.hashing import CHUNK, Memory, file_hashes
from phicli.artifacts.stages import fingerprint


@pytest.fixture
def memory(tmp_path, monkeypatch):
    memory = Memory(tmp_path / "cache" / "hashes")
    monkeypatch.setattr(hashing, "MEMORY", memory)
    return memory


@pytest.fixture
def settled(monkeypatch):
    """Files may be remembered as soon as they are written."""
    monkeypatch.setattr(hashing, "SETTLED", -(10**12))
    monkeypatch.setattr(hashing, "_in_memory", set)  # also where the temporary folder lies in memory


@pytest.fixture
def reads(monkeypatch):
    """The chunks that were read."""
    seen = []
    plain = hashing._hash_chunk

    def noting(path, start):
        seen.append((path.name, start))
        return plain(path, start)

    monkeypatch.setattr(hashing, "_hash_chunk", noting)
    return seen


def tree(data: bytes) -> str:
    """As the docstring says it."""
    parts = [hashlib.sha256(data[i : i + CHUNK]).digest() for i in range(0, max(1, len(data)), CHUNK)]
    return (parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()).hex()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_every_byte_counts(tmp_path, memory, size):
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "f").write_bytes(data)
    assert file_hashes([tmp_path / "f"]) == [tree(data)]
    for place in {0, size // 2, size - 1} if size else ():
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "g").write_bytes(changed)
        assert file_hashes([tmp_path / "g"]) == [tree(bytes(changed))] != [tree(data)]


def test_large_files_are_read_once_and_again_when_anything_changes(tmp_path, memory, settled, reads):
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 << 20))
    (tmp_path / "small").write_bytes(b"x")
    first = file_hashes([path, tmp_path / "small"])
    assert file_hashes([path, tmp_path / "small"]) == first
    assert [name for name, _ in reads] == ["weights", "small", "small"]  # small ones always
    hashing.MEMORY = Memory(memory.path)  # as another process would
    assert file_hashes([path]) == first[:1] and len(reads) == 3
    stat = path.stat()
    with path.open("r+b") as f:
        f.write(b"1")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # hides the change from whoever looks at that time only
    assert file_hashes([path]) == [tree(b"1" + bytes((2 << 20) - 1))] and len(reads) == 4


def test_a_file_changed_a_moment_ago_is_not_remembered(tmp_path, memory, reads):
    (tmp_path / "f").write_bytes(bytes(2 << 20))
    file_hashes([tmp_path / "f"])
    file_hashes([tmp_path / "f"])
    assert len(reads) == 2 and not memory.path.exists()


def test_a_clock_set_back_or_a_file_from_the_future_is_read_again(tmp_path, memory, settled, reads, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(bytes(2 << 20))
    file_hashes([path])
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 10**12)  # set back by a quarter of an hour
    file_hashes([path])
    assert len(reads) == 2
    monkeypatch.undo()
    monkeypatch.setattr(hashing, "MEMORY", Memory(tmp_path / "new"))
    os.utime(path, (time.time() + 86400,) * 2)
    file_hashes([path])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("damage", [b"", b"{}", b"0\n{}", bytes(1000)])
def test_a_damaged_memory_is_empty(tmp_path, memory, settled, reads, damage):
    (tmp_path / "f").write_bytes(bytes(2 << 20))
    first = file_hashes([tmp_path / "f"])
    whole = memory.path.read_bytes()
    for content in (damage, whole[:-2], whole.replace(first[0].encode(), first[0][::-1].encode())):
        memory.path.write_bytes(content)
        hashing.MEMORY = Memory(memory.path)
        assert file_hashes([tmp_path / "f"]) == first
    assert len(reads) == 1 + 3


def test_a_memory_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch, settled):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(hashing, "MEMORY", Memory(tmp_path / "file" / "hashes"))
    (tmp_path / "f").write_bytes(bytes(2 << 20))
    assert file_hashes([tmp_path / "f"]) == [tree(bytes(2 << 20))]


def test_fingerprint_of_many_files_in_order(tmp_path, memory):
    for i in range(40):
        (tmp_path / f"{i:02}").write_bytes(bytes([i]) * i * 1000)
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "00").write_bytes(b"1")
    assert fingerprint(tmp_path) != first
