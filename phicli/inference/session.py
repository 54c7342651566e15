"""A model of onnxruntime-genai with its tokenizer and its adapters, from opening to closing."""

import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakSet

import numpy as np

from phicli.artifacts.generations import of_one_generation
from phicli.config.commands import ChatConfig
from phicli.config.setting import checked
from phicli.errors import BadInput, UsageError
from phicli.export.graph_file import REBUILD, read_model
from phicli.inference.devices import checked_device
from phicli.inference.genai_model import open_graph
from phicli.inference.generator import Generator, closed_error, run_fault, translated
from phicli.inference.long_rope import LONG_FACTORS, border_of, load_long_factors
from phicli.inference.model_folder import ModelFolder
from phicli.inference.sampling import Sampling
from phicli.libraries import subdued

BASE_GRAPH = "base.onnx"  # beside a graph that holds its adapters: the same model without


class Session(ModelFolder):
    """One loaded model; any number of conversations and generators on it, in any number of threads.

        with Session("models/tiny/onnx-ao") as session:
            print(Conversation(session, adapter="travel").ask("Where should I go in spring?").text)

    The graph that is loaded stays the same until `close`, or the end of the `with` block, gives the memory back.
    Conversations and generators of a closed session raise UsageError.

    `sampling` is what the model asks for, to be handed to a `Conversation`.

    Args:
        folder: holds genai_config.json, the ONNX files, tokenizer and chat template; adapters under `adapters/`.
        device: "auto" (what the model was built for), or a provider: "cpu", "cuda", "openvino", ….
        kernels: on a CPU, whose products run: "phicli", "onnxruntime" or "auto", see `ops_of`.
        chat_template_kwargs: further variables of the chat template, such as {"enable_thinking": False}.
        adapters: False takes the graph without adapters where the folder has one. It is a little faster; answers with
            no adapter are the same on both.

    Raises:
        Missing: no such folder; CUDA wanted and not there; not enough memory.
        BadInput: the model is damaged or incomplete.
    """

    shares_runs = False  # of generators that are used at once

    @subdued()
    def __init__(self, folder: str | Path, device: str = "auto", kernels: str = "auto", adapters: bool = True,
                 chat_template_kwargs: Mapping[str, Any] | None = None):
        device, kernels = checked_device(device), checked(ChatConfig, "kernels", kernels)
        super().__init__(folder, chat_template_kwargs)
        import onnxruntime_genai as og

        self._og = og
        self._lock = threading.Lock()  # of all that changes below; never held while a model runs
        self._loaded: dict[str | None, Any] = {}  # name -> the og.Adapters that holds it; None: long factors alone
        self._generators: WeakSet[Generator] = WeakSet()
        of_one_generation(self.folder, lambda: self._open(device, kernels, adapters))

    def _open(self, device: str, kernels: str, adapters: bool) -> None:
        self._model: Any = None  # of a folder that was replaced while it was read
        self.read()
        base = self.folder / BASE_GRAPH
        self.takes_adapters = adapters or not base.is_file()
        self._graph = self.graph_file if self.takes_adapters else base
        self._stamp = stamp(self._graph)
        with translated("the model cannot be loaded", self.folder, REBUILD):
            graph = read_model(self._graph)
            self._properties = {p.key: p.value for p in graph.metadata_props}
            self.rope_border = border_of(graph)
            self._model, self.provider = open_graph(self.settings, self._graph, device, kernels)

    def close(self) -> None:
        """Give the memory of the model, its adapters and all its caches back. Again: nothing happens."""
        with self._lock:
            generators, self._generators = [*self._generators], WeakSet()
            self._model = None
            self._loaded.clear()
        for generator in generators:
            generator.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._model is None

    @property
    def outdated(self) -> bool:
        """Whether the folder has another graph by now: the model was built anew, or got another adapter in its graph.

        What is loaded goes on working, with the adapters that it holds; others need another session.
        """
        return stamp(self._graph) != self._stamp

    def load_adapter(self, name: str) -> None:
        """Load an adapter and check it against the model; nothing happens if it is loaded already.

        Raises:
            BadInput: no such adapter; one that is damaged, made for another model, or came after an `outdated` session.
            UsageError: the graph takes no adapters, or the session is closed.
        """
        self._adapter(name)

    def _adapter(self, name: str | None) -> Any:
        """The og.Adapters that holds an adapter, and LongRoPE's long factors where the model has any."""
        loaded = self._loaded.get(name)
        if loaded is None:
            with self._lock:
                loaded = self._loaded.get(name)
                if loaded is None:
                    loaded = self._loaded[name] = of_one_generation(self.folder, lambda: self._read_adapter(name))
        return loaded

    @subdued()
    def _read_adapter(self, name: str | None) -> Any:
        adapters = self._og.Adapters(self._open_model())
        with tempfile.TemporaryDirectory(prefix="phicli-") as scratch:
            if self.rope_border is not None:
                load_long_factors(adapters, Path(scratch))
            if name is None:
                return adapters
            path = self._file_for_graph(name, Path(scratch))
            with translated("damaged adapter", path, f"make it anew: phicli optimize --adapter {name}=FOLDER"):
                adapters.load(str(path), name)
        return adapters

    def _file_for_graph(self, name: str, scratch: Path) -> Path:
        """The file of an adapter for the graph that is loaded, which may be another by now than the folder's."""
        from phicli.export.adapters import write_held

        if self.outdated and self.takes_adapters:
            path = scratch / "adapter"
            if write_held(self._properties, name, path):
                return path
            raise outdated_error(self.folder)
        path = self.check_adapter(name)
        if not self.takes_adapters:
            raise UsageError("the session was opened without adapters", hint="Session(folder) opens it with them")
        return path

    def generator(self, max_length: int, adapter: str | None = None, sampling: Sampling | None = None, *,
                  rows: int = 1, least: int = 0) -> Generator:
        """A new sequence, or `rows` of one length, with a key-value cache for `max_length` tokens.

        least: no token that ends an answer is drawn before there are so many.

        Raises:
            BadInput, UsageError: as `load_adapter`; UsageError also for a sampling that only an engine knows.
            Missing: not enough memory.
        """
        border = self.rope_border
        adapters = self._adapter(adapter) if adapter is not None or border is not None else None
        sampling, model = sampling or Sampling(), self._open_model()
        if sampling.in_engines_only:
            raise UsageError("penalties for presence or frequency and logit_bias are for an Engine")
        where = self.adapter_path(adapter) if adapter else self.folder
        with translated(run_fault(adapter), where, REBUILD):
            params = self._og.GeneratorParams(model)
            params.set_search_options(max_length=max_length, min_length=least, batch_size=rows, num_beams=1,
                                      **sampling.search_options(self.vocab_size))
            made = self._og.Generator(model, params)
            if adapter is not None:
                made.set_active_adapter(adapters, adapter)
        long = partial(made.set_active_adapter, adapters, LONG_FACTORS) if border is not None else None
        generator = Generator(made, sampling, adapter, where, border, long)
        with self._lock:
            self._open_model()  # not one that `close` would not see
            self._generators.add(generator)
        return generator

    def logits(self, ids: Sequence[int], adapter: str | None = None) -> np.ndarray:
        """Logits at every position of a text, float32 [tokens, vocabulary], in one run.

        Raises:
            BadInput: no token, one that the vocabulary does not have, longer than the context, or an adapter that does
                not fit.
        """
        if not len(ids):
            raise BadInput("a text of no tokens has no logits", where=self.folder)
        if strange := [token for token in ids if not 0 <= token < self.vocab_size]:
            raise BadInput(f"{strange[0]}: a token that is none of the vocabulary's {self.vocab_size}",
                           where=self.folder)
        if len(ids) > self.context:
            raise BadInput(f"{len(ids)} tokens are more than the context of {self.context}", where=self.folder,
                           hint="a shorter text, or a smaller --seq-len of evaluate")
        generator = self.generator(len(ids), adapter)
        generator.append_tokens(ids)
        found = generator.logits()
        if len(found) != len(ids):
            raise BadInput("this model gives logits of the last token only", where=self.folder)
        return np.asarray(found, dtype=np.float32)

    def _open_model(self) -> Any:
        """The onnxruntime_genai.Model. Raises UsageError: closed."""
        model = self._model
        if model is None:
            raise closed_error()
        return model


def outdated_error(folder: Path) -> BadInput:
    """The error of whoever wants an adapter that came after the session."""
    return BadInput("the model was built anew, or got adapters, since it was loaded", where=folder,
                    hint="open another session")


def stamp(path: Path) -> tuple[int, int] | None:
    """Tells a graph from one that takes its place; None where there is none. A copy or link of it has the same."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
