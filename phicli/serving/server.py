"""A server from its settings: opening the model, listening, and stopping so that running answers come to their end."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from phicli.artifacts.names import ONNX_FOLDER
from phicli.config.commands import ServeConfig
from phicli.errors import UsageError
from phicli.inference.engine import Engine
from phicli.serving.app import make_app
from phicli.serving.metrics import Metrics
from phicli.serving.models import Models
from phicli.serving.service import Service
from phicli.serving.settings import adapter_root, base_name, not_had, read_keys
from phicli.text.layout import template_options

HEADER_SECONDS = 20  # in which a connection has to say what it wants
LAST_SECONDS = 2  # for connections, once all answers have ended or were cut off
BACKLOG = 512


class Server(uvicorn.Server):
    """Serves until a signal; then no new requests are taken, and answers have `grace` seconds left, or until the next.

    signalled: the number of the signal that it was.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service, self.signalled, self._until = service, 0, float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._until = time.monotonic() + (0 if self.service.stopping else self.service.config.grace)
        self.service.stopping, self.signalled = True, sig

    async def on_tick(self, counter: int) -> bool:
        over = time.monotonic() - self._until
        if self.service.stopping and (not self.service.requests or over > LAST_SECONDS):
            self.should_exit = True
        elif over > 0:
            for answer in self.service.answers:
                answer.cancel()
        return await super().on_tick(counter)


class Connection(H11Protocol):
    """A connection that is given up where no request comes, or its client does not take what is sent."""

    _given_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["phicli.abort"] = transport.abort
            await inner(scope, receive, send)

        self.app = app
        self._given_up = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._settle()
        elif self._given_up is None:  # a part of the next request
            self._given_up = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def _settle(self) -> None:
        if self._given_up:
            self._given_up.cancel()
            self._given_up = None


@contextlib.contextmanager
def opened(config: ServeConfig, tell: Callable[[str], None] | None = None) -> Iterator["Ready"]:
    """A server that listens, its model loaded; `Ready.run` answers.

    Args:
        tell: gets a line for each request.

    Raises:
        Missing: no model, no such device, the address is taken. BadInput, UsageError: as `Engine`, `Models` and
            `read_keys` do.
    """
    if config.engine != "phicli":
        raise UsageError("is a program of its own, which takes this process's place", where=f"engine {config.engine}",
                         hint=f"phicli serve --engine {config.engine}")
    _check_host(config)
    keys, root = read_keys(config), adapter_root(config)
    folder = Path(config.path or config.root_folder / ONNX_FOLDER)
    with contextlib.closing(_listen(config)) as listening, Engine(
            folder, config.runs_on, config.kernels, config.max_batch, config.context, config.max_queue,
            config.prefix_cache, template_options(config.chat_template_kwargs), config.fixed_batch,
            speculate=config.speculate) as engine:
        models = Models(engine, base_name(config), config.adapters, root)
        yield Ready(Service(engine, models, config, Metrics(engine), tell), keys, listening)


@dataclass(frozen=True)
class Ready:
    """A server that only has to be run."""

    service: Service
    keys: list[str]
    listening: socket.socket

    @property
    def address(self) -> str:
        host, port = self.listening.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self) -> int:
        """Serve until a signal, in the main thread; returns its number."""
        server = Server(uvicorn.Config(
            make_app(self.service, self.keys), http=Connection, ws="none", lifespan="on", log_config=None,
            log_level="error", access_log=False, server_header=False, date_header=False,
            timeout_keep_alive=HEADER_SECONDS, timeout_graceful_shutdown=LAST_SECONDS), self.service)
        server.run([self.listening])
        return server.signalled


def _check_host(config: ServeConfig) -> None:
    """Raises UsageError: no address; before anything is said about keys that it might need."""
    try:
        socket.getaddrinfo(config.host, config.port)
    except (socket.gaierror, UnicodeError) as e:
        raise UsageError(f"no address: {getattr(e, 'strerror', None) or e}", where=f"--host {config.host}",
                         hint="phicli serve --host 127.0.0.1") from None


def _listen(config: ServeConfig) -> socket.socket:
    """Before the model is loaded, which takes its time. Raises Missing: the address cannot be had."""
    try:
        return socket.create_server((config.host, config.port), backlog=BACKLOG,
                                    family=socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    except OSError as e:
        raise not_had(e, f"{config.host}:{config.port}") from None
