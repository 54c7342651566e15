"""The bytes of a file or of stdin, decompressed, in bounded memory."""

import bz2
import errno
import gzip
import lzma
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from phicli.artifacts.reading import open_regular
from phicli.errors import BadInput, Missing

BLOCK = 1 << 20  # bytes read at once
LOOK = 1 << 16  # bytes that are looked at to tell what a file is
SHARE_OF_ROOM = 0.5  # of the disk, for what has to be unpacked; the rest is for other programs
XZ_MEMORY = 256 << 20  # bytes; its strongest usual setting needs 65 MB, a hostile file may ask for 4 GB


class ByteStream:
    """The bytes of a file; its compression (gzip, zstd, bzip2, xz) is found from its first bytes. Iterate once.

    Attributes:
        name: what to call the file in messages.
        size: bytes of the file, None for a pipe. done: bytes of it that were read.
        compressed: it is. head: the first bytes, at least LOOK of them where there are so many.

    Raises:
        BadInput: no such file, a folder, not readable, damaged compression.
    """

    def __init__(self, path: str | Path):
        self.name = "stdin" if str(path) == "-" else str(path)
        self.size: int | None = None
        self.done = 0
        try:
            self._raw: Any = sys.stdin.buffer if str(path) == "-" else open_regular(Path(path).expanduser())
        except FileNotFoundError:
            raise BadInput("no such file", where=path, hint="a file that is there, or - for stdin") from None
        with suppress(OSError):
            status = os.fstat(self._raw.fileno())
            self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self.compressed, self._rest, self.head = False, self._decompressed(), b""
        try:
            while len(self.head) < LOOK and (block := next(self._rest, b"")):
                self.head += block
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        if self.head:
            yield self.head
        yield from self._rest

    def close(self) -> None:
        if self._raw is not sys.stdin.buffer:
            self._raw.close()

    def seekable(self) -> BinaryIO:
        """The bytes as a file that can be sought in: the file itself, or an unnamed temporary one.

        Raises:
            BadInput: as iterating does. Missing: there is no room for the temporary file.
        """
        if not self.compressed and self._raw is not sys.stdin.buffer:
            self._raw.seek(0)
            return self._raw
        room = int(shutil.disk_usage(tempfile.gettempdir()).free * SHARE_OF_ROOM)
        file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            for block in self:
                room -= len(block)
                if room < 0:
                    raise OSError(errno.ENOSPC, "it takes too much of what is free there")
                file.write(block)
        except OSError as e:
            file.close()
            raise Missing(f"no room to unpack it: {e.strerror}", where=self.name,
                          hint=f"it goes to {tempfile.gettempdir()}; TMPDIR names another folder") from None
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file  # type: ignore[return-value]

    def _decompressed(self) -> Iterator[bytes]:
        """Blocks of at most BLOCK bytes, none of them empty."""
        try:
            magic = self._raw.peek(6)[:6]
            unpack = next((unpack for start, unpack in UNPACKERS.items() if magic.startswith(start)), None)
            self.compressed = unpack is not None
            for block in (unpack or _read)(self._raw):
                self.done = self._raw.tell() if self.size else self.done + len(block)
                yield block
        except EOFError:
            raise BadInput("truncated: the compressed data end too early", where=self.name) from None
        except (OSError, zlib.error, lzma.LZMAError) as e:
            raise BadInput(f"cannot be read: {e}", where=self.name) from None


def _read(stream: Any) -> Iterator[bytes]:
    while block := stream.read(BLOCK):
        yield block


def _gzip(raw: BinaryIO) -> Iterator[bytes]:
    return _read(gzip.GzipFile(fileobj=raw))


def _zstd(raw: BinaryIO) -> Iterator[bytes]:
    import pyarrow as pa

    # Closing the one must not close the other: it is ours, or stdin.
    with pa.CompressedInputStream(pa.PythonFile(_Borrowed(raw), "r"), "zstd") as stream:
        yield from _read(stream)


def _bzip2(raw: BinaryIO) -> Iterator[bytes]:
    return _members(raw, bz2.BZ2Decompressor)


def _xz(raw: BinaryIO) -> Iterator[bytes]:
    return _members(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY))


def _members(raw: BinaryIO, decompressor: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress one compressed stream after the other; zeros may stand between them."""
    packed = raw.read(BLOCK)
    while packed:
        member = decompressor()
        while not member.eof:
            if member.needs_input and not packed:
                packed = raw.read(BLOCK)
                if not packed:
                    raise EOFError
            if block := member.decompress(packed, BLOCK):
                yield block
            packed = b""
        packed = member.unused_data.lstrip(b"\0") or raw.read(BLOCK).lstrip(b"\0")


class _Borrowed:
    """A file that is read and never closed."""

    closed = False

    def __init__(self, raw: BinaryIO):
        self.read = raw.read

    def close(self) -> None:
        pass


UNPACKERS: dict[bytes, Callable[[BinaryIO], Iterator[bytes]]] = {
    b"\x1f\x8b": _gzip, b"\x28\xb5\x2f\xfd": _zstd, b"BZh": _bzip2, b"\xfd7zXZ\0": _xz,
}
