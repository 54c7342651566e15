"""A model of onnxruntime-genai with its tokenizer and its adapters."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phicli.artifacts.generations import generation, of_one_generation
from phicli.artifacts.stages import REMOVABLE, check_whole
from phicli.errors import BadInput, PhicliError
from phicli.export.genai_config import read_config
from phicli.inference.genai_model import open_graph
from phicli.resources.shortage import within_memory
from phicli.text import TextCodec

ADAPTER_SUFFIX = ".onnx_adapter"
BASE_GRAPH = "base.onnx"  # beside a graph that holds its adapters: the same model without

# These model types rotate positions with other factors as soon as a sequence is longer than this (LongRoPE), so
# keys cached below the border are wrong above it, and the other way round. The numbers are those of genai's source:
# its config says neither; genai itself recomputes the cache only where `generate_next_token` crosses the border.
ROPE_BORDER = {"phi3": 4096, "phimoe": 4096, "phi3small": 8192}


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature 0 takes the likeliest one; top_p and top_k then have no effect."""

    temperature: float = 0.0
    top_p: float = 0.95
    top_k: int = 50
    seed: int = 0

    def search_options(self, vocab_size: int) -> dict[str, Any]:
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p,
                "top_k": min(self.top_k, vocab_size), "random_seed": self.seed % 2**31}  # genai takes 31 bits


class Session:
    """One loaded model; any number of generators on it.

    Args:
        folder: holds genai_config.json, the ONNX files, tokenizer and chat template; adapters under `adapters/`.
        device: "auto" (what the model was built for), "cpu" or "cuda".
        kernels: on a CPU, whose products run: "phicli", "onnxruntime" or "auto", see `ops_of`.

    Raises:
        Missing: no such folder; CUDA wanted and not there; not enough memory.
        BadInput: the model is damaged or incomplete.
    """

    def __init__(self, folder: Path, device: str = "auto", kernels: str = "auto"):
        import onnxruntime_genai as og

        self._og = og
        self.folder = Path(folder)
        self._device, self._kernels = device, kernels
        of_one_generation(self.folder, self._open)

    def _open(self) -> None:
        self._generation = generation(self.folder)
        self._settings = read_config(self.folder)
        check_whole(self.folder, lambda name: not name.startswith(REMOVABLE))  # an adapter: when it is loaded
        self.codec = TextCodec(self.folder)
        model = self._settings["model"]
        self.context: int = model["context_length"]
        self.vocab_size: int = model["vocab_size"]
        self.rope_border = ROPE_BORDER.get(model["type"], self.context)
        ends = model["eos_token_id"]
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends])
        self._without = (self.folder / BASE_GRAPH).is_file()  # there is a graph without adapters
        self._load(adapters=False)

    def _load(self, adapters: bool) -> None:
        """Load the graph; where there are two, the one without adapters runs faster. One is in memory at a time."""
        self._model: Any = None
        self._adapters: Any = None
        self._loaded: set[str] = set()
        graph = BASE_GRAPH if self._without and not adapters else self._settings["model"]["decoder"]["filename"]
        with translated("the model cannot be loaded", self.folder, "phicli optimize --force"):
            self._model, self.provider = open_graph(self._settings, self.folder / graph, self._device, self._kernels)
        self._takes_adapters = adapters or not self._without

    def _turn_to(self, adapters: bool) -> None:
        """Have a graph with or without adapters in memory, of the folder that is there now."""
        if generation(self.folder) != self._generation:
            self._open()
        if self._without and adapters != self._takes_adapters:
            self._load(adapters)

    def adapter_names(self) -> list[str]:
        """Names of the adapters that lie beside the model."""
        return sorted(p.name[: -len(ADAPTER_SUFFIX)] for p in self.folder.glob(f"adapters/*{ADAPTER_SUFFIX}"))

    def load_adapter(self, name: str) -> None:
        """Load an adapter and check it against the model; nothing happens if it is loaded already.

        Raises:
            BadInput: no such adapter, or one that is damaged or made for another model.
        """
        if name not in self._loaded:
            of_one_generation(self.folder, lambda: self._load_adapter(name))

    def _load_adapter(self, name: str) -> None:
        known = self.adapter_names()
        if name not in known:
            raise BadInput(f"no adapter '{name}'; there are: {', '.join(known) or 'none'}",
                           where=self.folder / "adapters", hint=f"phicli optimize --adapter {name}=FOLDER adds it")
        path = self.folder / "adapters" / (name + ADAPTER_SUFFIX)
        check_whole(self.folder, f"{REMOVABLE}{path.name}".__eq__)
        _check_adapter(self.folder, path)
        self._turn_to(adapters=True)
        with translated("damaged adapter", path, f"make it anew: phicli optimize --adapter {name}=FOLDER"):
            self._adapters = self._adapters or self._og.Adapters(self._model)
            self._adapters.load(str(path), name)
        self._loaded.add(name)

    def generator(self, max_length: int, adapter: str | None = None, sampling: Sampling | None = None) -> Any:
        """A new onnxruntime_genai.Generator with a key-value cache for `max_length` tokens.

        Raises:
            BadInput: as `load_adapter`. Missing: not enough memory.
        """
        if adapter is not None:
            self.load_adapter(adapter)
        elif self._takes_adapters and self._without:
            of_one_generation(self.folder, lambda: self._turn_to(adapters=False))
        with self.running(adapter):
            params = self._og.GeneratorParams(self._model)
            params.set_search_options(max_length=max_length, batch_size=1, num_beams=1,
                                      **(sampling or Sampling()).search_options(self.vocab_size))
            generator = self._og.Generator(self._model, params)
            if adapter is not None:
                generator.set_active_adapter(self._adapters, adapter)
        return generator

    def logits(self, ids: Sequence[int], adapter: str | None = None) -> np.ndarray:
        """Logits at every position of a text, float32 [tokens, vocabulary], in one run.

        Raises:
            BadInput: longer than the context, or an adapter that does not fit.
        """
        if len(ids) > self.context:
            raise BadInput(f"{len(ids)} tokens are more than the context of {self.context}", where=self.folder)
        generator = self.generator(len(ids), adapter)
        with self.running(adapter):
            generator.append_tokens(np.asarray(ids, dtype=np.int32))
            found = generator.get_output("logits")[0]
        if len(found) != len(ids):
            raise BadInput("this model gives logits of the last token only", where=self.folder)
        return np.asarray(found, dtype=np.float32)

    def running(self, adapter: str | None) -> contextlib.AbstractContextManager[None]:
        """Around every call of genai: its errors become ours. Adapters that do not fit show only here."""
        where = self.folder / "adapters" / (adapter + ADAPTER_SUFFIX) if adapter else self.folder
        return translated("the adapter does not fit this model" if adapter else "the model cannot be run", where,
                          "phicli optimize --force")


@contextlib.contextmanager
def translated(message: str, where: Path, hint: str) -> Iterator[None]:
    """Turn genai's RuntimeError into BadInput with this message, or Missing where memory ran out."""
    try:
        with within_memory("chat", where):
            yield
    except PhicliError:
        raise
    except (RuntimeError, ValueError, OSError) as e:
        raise BadInput(f"{message}: {' '.join(str(e).split())}", where=where, hint=hint) from e


def _check_adapter(folder: Path, path: Path) -> None:
    from phicli.export.adapters import check_adapter

    check_adapter(folder, path)
