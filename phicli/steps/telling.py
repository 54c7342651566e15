"""What a step gave, in a sentence that a person understands who does not know the figure."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts.names import ADAPTERS
from phicli.artifacts.stages import Manifest
from phicli.errors import BadInput
from phicli.units import number, size, times

OUTER = ("embed", "lm_head")  # in names of what is no layer
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
ONNX_TYPES = {1: ("float32", 4), 10: ("float16", 2), 16: ("bfloat16", 2), 2: ("", 1), 3: ("", 1)}


def quantized(folder: Path, manifest: Manifest) -> str:
    """The size before and after, and what the latter is made up of: "11.0 MB -> 6.2 MB: layers 1.8 MB in int4, …"."""
    from phicli.hub.models import read_headers

    text = f"{size(manifest.quality['source_bytes'])} -> {size(manifest.bytes)}"
    parts = {True: 0, False: 0}
    kind = ""
    with contextlib.suppress(BadInput):
        for name, tensor in read_headers(folder).items():
            outer = any(part in name for part in OUTER)
            parts[outer] += tensor["data_offsets"][1] - tensor["data_offsets"][0]
            kind = FLOATS.get(tensor["dtype"], kind) if outer else kind
    if not all(parts.values()):
        return text
    bits = manifest.settings.get("bits", 4)
    return f"{text}: layers {size(parts[False])} in int{bits}, embeddings and output {size(parts[True])} in {kind}"


def trained(quality: Mapping[str, Any]) -> str:
    """The loss before and after, and what that means."""
    kind = "train" if quality["held_out_loss_after"] is None else "held_out"
    before, after = (quality[f"{kind}_loss_{when}"] for when in ("before", "after"))
    whose = "an answer trained on" if kind == "train" else "a held-out answer"
    return f"{kind.replace('_', '-')} loss {before:.2f} -> {after:.2f}: {_likelier(math.exp(before - after), whose)}"


def built(folder: Path, manifest: Manifest) -> str:
    """The size, and what it is made up of."""
    adapters = sum(n for name, n in manifest.files.items() if name.startswith(ADAPTERS))
    graphs = sum(n for name, n in manifest.files.items() if ".onnx" in name and not name.startswith(ADAPTERS))
    kind, embeddings = _embeddings(folder)
    kind = kind or str(manifest.settings.get("embeddings") or manifest.settings.get("head"))
    parts = [("layers and output", graphs - embeddings, ""), ("embeddings", embeddings, f" in {kind}"),
             ("adapters", adapters, f" ({', '.join(sorted(manifest.quality['adapters']))})"),
             ("tokenizer and settings", manifest.bytes - graphs - adapters, "")]
    return f"{size(manifest.bytes)}: " + ", ".join(f"{name} {size(n)}{more}" for name, n, more in parts if n > 0)


def _embeddings(folder: Path) -> tuple[str, int]:
    """Type ("" where they are quantized) and bytes of the embeddings in the graph; 0 where they are not seen."""
    from phicli.export.graph_file import read_model

    with contextlib.suppress(BadInput, OSError):
        for tensor in read_model(folder / "model.onnx").graph.initializer:
            if OUTER[0] in tensor.name and tensor.data_type in ONNX_TYPES and len(tensor.dims) > 1:
                kind, width = ONNX_TYPES[tensor.data_type]
                return kind, math.prod(tensor.dims) * width
    return "", 0


def judged(stages: Sequence[Mapping[str, Any]]) -> str:
    """The first stage's perplexity beside that of the last one with an adapter, or else of the last one."""
    there = [stage for stage in stages if not stage["missing"]]
    first, last = there[0], ([stage for stage in there if stage["adapter"]] or there)[-1]
    before, after = first["perplexity"], last["perplexity"]
    if last is first:
        return f"perplexity {number(before)} ({first['stage']}); lower is better"
    return (f"perplexity {number(before)} ({first['stage']}) -> {number(after)} ({last['stage']}), lower is better: "
            f"{_likelier(before / after, 'a held-out answer')}")


def _likelier(ratio: float, whose: str) -> str:
    """A ratio of likelihoods a token, which perplexities and losses are about, in words."""
    if not 0 < ratio < math.inf:
        return "no figure to compare"
    if 0.95 < ratio < 1.05:
        return f"each token of {whose} is about as likely as before"
    more = ratio > 1
    return f"each token of {whose} is {times(ratio if more else 1 / ratio)} {'likelier' if more else 'less likely'} " \
           "than before"
