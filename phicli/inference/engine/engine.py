"""The engine: from a model's folder to rows that run together, safe to use from any thread."""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from phicli.artifacts.generations import of_one_generation
from phicli.artifacts.reading import read_text
from phicli.checkpoints.peft_folder import read_peft
from phicli.config.commands import ChatConfig, ServeConfig
from phicli.config.setting import LARGEST, checked
from phicli.errors import BadInput, Missing, UsageError
from phicli.export.graph_file import REBUILD
from phicli.export.sources import NAME
from phicli.inference.devices import checked_device
from phicli.inference.engine.adapters import Adapters
from phicli.inference.engine.alone import RowsAlone
from phicli.inference.engine.batch import Batch
from phicli.inference.engine.drawing import Drawing
from phicli.inference.engine.grammar import Matcher, vocabulary_of
from phicli.inference.engine.opening import Unfit, open_served
from phicli.inference.engine.request import Busy, EngineStats, Finish, NameTaken, Piece, Request
from phicli.inference.engine.row import Row
from phicli.inference.engine.rows import Rows
from phicli.inference.engine.scheduler import Scheduler
from phicli.inference.engine.speculation import Speculation
from phicli.inference.generator import translated
from phicli.inference.model_folder import ModelFolder, no_adapter, optimizing
from phicli.inference.session import Session
from phicli.libraries import subdued
from phicli.text import TextCodec
from phicli.text.layout import LONGEST


class Handle:
    """A request that was submitted."""

    def __init__(self, cancel: Callable[[], None]):
        self._cancel = cancel

    def cancel(self) -> None:
        """End it before its next token; does nothing where it has ended."""
        self._cancel()


class Engine:
    """Requests to one model folder, run together.

    context: the longest prompt and answer together, in tokens. sampling: what the model asks for. provider: where it
    runs. model: what its folder says. why_alone: why rows of this model do not share their runs; None where they do.

    Args:
        folder, device, kernels, chat_template_kwargs: as `Session` has them.
        max_batch: rows that run at once. context: less than the model's, to bound memory. max_queue: requests that may
            wait for their turn. prefix_cache: keep what prompts have in common. fixed_batch: every step runs
            max_batch rows, if need be empty ones; on a GPU only this, without a prefix cache, gives a row the tokens
            that it gets alone. session_options: further entries of onnxruntime's session configuration. alone: whether
            rows that cannot share their runs run one by one. speculate: how many tokens of a row are guessed, from what
            came before in it, and run at once; "auto" as many as pay, none with fixed_batch; "off" none.

    Raises:
        Missing, BadInput: as `Session` does. Unfit: rows of this model run `alone` or not at all.
    """

    @subdued()
    def __init__(self, folder: str | Path, device: str = "auto", kernels: str = "auto", max_batch: int = 8,
                 context: int | None = None, max_queue: int = 256, prefix_cache: bool = True,
                 chat_template_kwargs: Mapping[str, Any] | None = None, fixed_batch: bool = False,
                 session_options: Mapping[str, str] | None = None, alone: bool = True, speculate: int | str = "auto"):
        device, kernels = checked_device(device), checked(ChatConfig, "kernels", kernels)
        guessed: str = checked(ServeConfig, "speculate", str(speculate))
        for name, value in (("max_batch", max_batch), ("max_queue", max_queue), ("context", context or 1)):
            if not 1 <= value <= LARGEST:
                raise UsageError("must be at least 1", where=name)
        self._lock, self._adding, self._vocabulary = threading.Lock(), threading.Lock(), None
        self.model = ModelFolder(folder, chat_template_kwargs)
        self._names: dict[str, int] = {}  # adapters that may be asked for -> their keys
        self._codecs: dict[int, TextCodec] = {}  # of those that came later
        self._users: Counter[int] = Counter()  # requests that have not ended, by key
        self._adapters: Adapters | None = None
        self.why_alone: str | None = None

        def open_rows() -> Rows:
            self.model.read()
            with translated("the model cannot be loaded", self.model.folder, REBUILD):
                try:
                    served = open_served(self.model.settings, self.model.graph_file, device, kernels, context,
                                         session_options or {})
                except Unfit as e:
                    if not alone:
                        raise
                    self.why_alone = str(e)
                    session = Session(folder, device, kernels, chat_template_kwargs=chat_template_kwargs)
                    self.context, self.provider = min(context or session.context, session.context), session.provider
                    self._names = {name: key for key, name in enumerate(self.model.adapter_names(), 1)}
                    return RowsAlone(session)
                self.context, self.provider, self._adapters = served.context, served.provider, served.adapters
                beside = set(self.model.adapter_names())
                self._names = {name: key for key, name in enumerate(served.names, 1) if name in beside}
                return Batch(served, max_batch, prefix_cache, fixed_batch)

        rows = of_one_generation(self.model.folder, open_rows)
        self.vocab_size, self.sampling = self.model.vocab_size, self.model.sampling
        speculation = None
        if isinstance(rows, Batch) and guessed != "off" and not (guessed == "auto" and fixed_batch):
            speculation = Speculation(rows, None if guessed == "auto" else int(guessed))
        self._scheduler = Scheduler(rows, max_batch, max_queue, speculation)

    def codec_of(self, adapter: str | None) -> TextCodec:
        """Tokenizer and chat template for an adapter, or for the model itself."""
        with self._lock:
            found = self._codecs.get(self._names.get(adapter or "", 0))
        return found or self.model.codec_of(adapter)

    def adapter_names(self) -> list[str]:
        """Names of the adapters that requests may ask for."""
        return sorted(self._names)

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Take another adapter, a PEFT folder, while rows run.

        Raises:
            NameTaken: there is one of that name. BadInput: the name is none, the adapter is damaged or for another
                model.
            Missing: this model takes none while it runs, or no more.
        """
        hint = optimizing(self.model.folder, name)
        if not self._adapters or not self._adapters.current.inputs:
            raise Missing("this model takes no adapters while it runs", hint=hint)
        if not NAME.fullmatch(name):
            raise BadInput(f"'{name}' is no name for an adapter: letters, digits, '.', '_' and '-'")
        with self._adding:
            if name in self._names:
                raise NameTaken(f"there is an adapter '{name}' already")
            loras, template = read_peft(Path(folder)), Path(folder) / "chat_template.jinja"
            codec = self.model.codec.under(read_text(template, LONGEST)) if template.is_file() else None
            with self._lock:  # which the engine's thread needs too: not for long
                used = {*self._names.values(), *(key for key, count in self._users.items() if count)}
                self._codecs = {key: own for key, own in self._codecs.items() if key in used}
            key = self._adapters.add(loras, Path(folder), used)
            with self._lock:
                if codec:
                    self._codecs[key] = codec
                self._names[name] = key

    def remove_adapter(self, name: str) -> None:
        """Refuse requests for an adapter from now on; those that were accepted end as they would.

        Raises:
            BadInput: no such adapter.
        """
        with self._lock:
            self._key_of(name)
            del self._names[name]

    def submit(self, request: Request, deliver: Callable[[Piece | Finish], None]) -> Handle:
        """Queue a request. `deliver` gets its pieces and one Finish, on a thread that it must not hold up.

        Raises:
            BadInput: longer than the context, an unknown adapter or token, a grammar that is too costly.
            Busy: the queue is full, or the engine is closed.
        """
        self._check(request)
        self._key_of(request.adapter)
        codec = self.codec_of(request.adapter)
        special = {codec.special[stop][0] for stop in request.stop if stop in codec.special}
        ends = special if request.ignore_eos else special | self.model.end_ids
        most = self.context if request.max_tokens is None else min(self.context, len(request.ids) + request.max_tokens)
        matcher = Matcher(self._vocabulary_of(codec), request.grammar) if request.grammar else None
        drawing = Drawing(request.sampling, request.ids, self.vocab_size, matcher)
        with self._lock:
            adapter = self._key_of(request.adapter)
            self._users[adapter] += 1

        def told(event: Piece | Finish) -> None:
            if isinstance(event, Finish):
                with self._lock:
                    self._users[adapter] -= 1
            deliver(event)

        row = Row(request, told, codec, adapter, frozenset(ends), most, drawing)
        try:
            self._scheduler.add(row)
        except Busy:
            with self._lock:
                self._users[adapter] -= 1
            raise
        return Handle(lambda: self._scheduler.cancel(row))

    def generate(self, request: Request) -> Iterator[Piece | Finish]:
        """The pieces of an answer as they come, then a Finish; leaving early cancels it. Raises as `submit`."""
        events: queue.SimpleQueue[Piece | Finish] = queue.SimpleQueue()
        handle = self.submit(request, events.put)
        try:
            while True:
                event = events.get()
                yield event
                if isinstance(event, Finish):
                    return
        finally:
            handle.cancel()

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def close(self) -> None:
        """Cancel all requests and give the memory back."""
        self._scheduler.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _check(self, request: Request) -> None:
        if len(request.ids) >= self.context:
            raise BadInput(f"the prompt has {len(request.ids)} tokens, the context is {self.context}", where="ids")
        for field, tokens in (("ids", request.ids), ("logit_bias", request.sampling.logit_bias)):
            if any(not 0 <= token < self.vocab_size for token in tokens):
                raise BadInput(f"a token that is none of the vocabulary's {self.vocab_size}", where=field)

    def _key_of(self, name: str | None) -> int:
        """0 for no adapter."""
        if name is not None and name not in self._names:
            raise no_adapter(self.model.folder, name, sorted(self._names))
        return 0 if name is None else self._names[name]

    def _vocabulary_of(self, codec: TextCodec) -> Any:
        with self._lock:
            if self._vocabulary is None:
                text = read_text(codec.folder / "tokenizer.json")
                self._vocabulary = vocabulary_of(text, self.vocab_size, sorted(self.model.end_ids))
            return self._vocabulary
