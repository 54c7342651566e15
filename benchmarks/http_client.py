"""A small HTTP client for the benchmarks of the server: it can be slow, rude and dead, as real ones are.

Only addresses of this machine are asked.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import json
import shlex
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

SECONDS = 120  # for anything


class Exchange:
    """One request on a connection of its own."""

    def __init__(self, place: tuple[str, int]):
        self.place = place

    async def __aenter__(self) -> "Exchange":
        self.reader, self.writer = await asyncio.open_connection(*self.place)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, path: str, body: Any, cut: int | None = None) -> None:
        """A request; cut: only so many bytes of its body, a document or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        method = "POST" if data else "GET"
        self.writer.write(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: "
                          f"application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data[:cut])
        await self.writer.drain()

    async def status(self) -> int:
        line = await self.reader.readline()
        while (await self.reader.readline()).strip():
            pass
        return int(line.split()[1]) if line else 0

    async def document(self) -> Any:
        """The body of an answer that comes whole."""
        return json.loads(await self.reader.read())

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The documents of a stream of events, up to [DONE]."""
        async for line in self.reader:
            if line.startswith(b"data: "):
                if line.startswith(b"data: [DONE]"):
                    return
                yield json.loads(line[6:])
        raise ConnectionError("the stream was cut")

    def reset(self) -> None:
        """Leave without a word: the other side gets a reset."""
        found = self.writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def ask(place: tuple[str, int], path: str, body: Any = b"") -> Any:
    """The document that a request gets, or its text."""
    async with asyncio.timeout(SECONDS), Exchange(place) as exchange:
        await exchange.send(path, body)
        status, content = await exchange.status(), await exchange.reader.read()
        if status != 200:
            raise RuntimeError(f"{path}: {status} {content[:200]!r}")
        return json.loads(content) if content[:1] in b"{[" else content.decode()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which server: one that runs, or one that is started."""
    parser.add_argument("--url", help="of a server of this machine that runs; without it one is started")
    parser.add_argument("--path", help="folder of an ONNX model, for a server that is started")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="further ones of a server that is started")


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[tuple[str, int], int | None]]:
    """Where the server is, and the process that was started, if one was."""
    if args.url:
        yield _place(args.url), None
        return
    if not args.path:
        raise SystemExit("needs --url or --path")
    command = [sys.executable, "-m", "phicli", "serve", "--path", args.path, "--port", "0", "--device", args.device,
               "--max-batch", str(args.max_batch), *shlex.split(args.serve)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout
    try:
        yield _place(started.stdout.readline().strip()), started.pid
    finally:
        started.terminate()
        if started.wait(60):
            raise SystemExit("the server did not end well")


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    if not host or not ipaddress.ip_address(host).is_loopback:
        raise SystemExit("only a server of this machine is asked")
    return host, parts.port or 80
