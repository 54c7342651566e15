"""Conversations that answer at the same time, as rows of one batch: a session on an engine."""

import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phicli.inference.engine.engine import Engine, Handle
from phicli.inference.engine.request import Finish, Piece, Request
from phicli.inference.engine.slots import WORTH
from phicli.inference.generator import closed_error
from phicli.inference.sampling import Sampling
from phicli.inference.session import outdated_error, stamp


class TogetherGenerator:
    """What `Conversation` asks of a generator. From the first `next_token` on the engine goes ahead, until `rest`."""

    long = False

    def __init__(self, engine: Engine, most: int, adapter: str | None, sampling: Sampling):
        self._engine, self._most, self._adapter, self._sampling = engine, most, adapter, sampling
        self._tokens: list[int] = []
        self._events: queue.SimpleQueue[Piece | Finish] = queue.SimpleQueue()
        self._handle: Handle | None = None

    def append_tokens(self, ids: Sequence[int]) -> None:
        self.rest()
        self._tokens += ids

    def next_token(self) -> int:
        if self._handle is None:
            self._events = queue.SimpleQueue()
            asked = Request(self._tokens, self._adapter, self._sampling, self._most - len(self._tokens),
                            ignore_eos=True)
            self._handle = self._engine.submit(asked, self._events.put)
        while not isinstance(event := self._events.get(), Finish):
            for token in event.ids:
                self._tokens.append(token)
                return token
        raise event.error or closed_error()

    def rest(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None

    def tokens(self) -> np.ndarray:
        return np.array(self._tokens, np.int32)

    def token_count(self) -> int:
        return len(self._tokens)

    def rewind_to(self, length: int) -> bool:
        """False where so few tokens are not kept."""
        self.rest()
        del self._tokens[length:]
        return length >= WORTH

    def check(self) -> None:
        """The engine has looked at the logits of each token."""

    def expect_long(self) -> None:
        """A prompt beyond LongRoPE's border is longer than the context here."""


class TogetherSession:
    """A model for a number of conversations, whose answers share their runs where they are generated at once.

    It has what `Conversation` asks of a `Session`. context: at most LongRoPE's border; whole_context: the model's own.

    Args:
        rows: conversations. The others are as `Session` has them.

    Raises:
        Unfit: this model's rows do not share their runs. Else as `Session`.
    """

    shares_runs, takes_adapters, rope_border = True, True, None

    def __init__(self, folder: Path, rows: int, device: str, kernels: str, template_options: Mapping[str, Any]):
        self.engine = Engine(folder, device, kernels, rows, chat_template_kwargs=template_options, alone=False)
        model = self.engine.model
        self.folder, self.codec, self.end_ids, self.sampling = model.folder, model.codec, model.end_ids, model.sampling
        self.codec_of, self.adapter_names, self.check_adapter = model.codec_of, model.adapter_names, model.check_adapter
        self.context, self.whole_context, self.provider = self.engine.context, model.context, self.engine.provider
        self._stamp, self.closed = stamp(model.graph_file), False

    @property
    def outdated(self) -> bool:
        """As `Session.outdated`."""
        return stamp(self.engine.model.graph_file) != self._stamp

    def load_adapter(self, name: str) -> None:
        """Check an adapter. Raises BadInput: no such adapter, one that is damaged, or came after the session."""
        there = name in self.engine.adapter_names()
        if not (there and self.outdated):
            self.check_adapter(name)
        if not there:
            raise outdated_error(self.folder)

    def generator(self, max_length: int, adapter: str | None = None, sampling: Sampling | None = None
                  ) -> TogetherGenerator:
        """A sequence of at most so many tokens. Raises UsageError: the session is closed."""
        if self.closed:
            raise closed_error()
        return TogetherGenerator(self.engine, max_length, adapter, sampling or Sampling())

    def close(self) -> None:
        self.closed = True
        self.engine.close()
