"""What all requests share: the engine, its models, limits, and how many answers run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from phicli.config.commands import ServeConfig
from phicli.inference.engine import Engine
from phicli.serving.bridge import Answer, Bridge
from phicli.serving.metrics import Metrics
from phicli.serving.models import Models
from phicli.text import TextCodec
from phicli.text.calls import CallFormat, call_format

PREPARERS = 4  # threads that lay out prompts
SPARE = 64  # requests beyond those that run and wait: their bodies are read
ALL_BODIES = 1 << 26  # bytes of all bodies that are held at once, or that of the largest


@dataclass
class Service:
    """The state of a server.

    requests, bodies: how many are there now, and the bytes of their bodies. answers: that are generated.
    stopping: no new requests are taken. tell: gets a line for each request that has ended.
    """

    engine: Engine
    models: Models
    config: ServeConfig
    metrics: Metrics
    tell: Callable[[str], None] | None = None
    requests: int = 0
    bodies: int = 0
    answers: set[Answer] = field(default_factory=set)
    stopping: bool = False
    bridge: Bridge = field(init=False)  # set in the loop

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(PREPARERS, "phicli-prepare")
        self.most_requests = self.config.max_queue + self.config.max_batch + SPARE
        self._formats: WeakKeyDictionary[TextCodec, CallFormat | None] = WeakKeyDictionary()

    def call_format(self, codec: TextCodec) -> CallFormat | None:
        """How calls of tools look, see `phicli.text.calls`."""
        if codec not in self._formats:
            self._formats[codec] = call_format(codec)
        return self._formats[codec]

    def health(self) -> dict[str, Any]:
        stats = self.engine.stats()
        return {"status": "stopping" if self.stopping else "ok", "models": len(self.models.names()),
                "running": stats.running, "waiting": stats.waiting, "slots": stats.slots}
