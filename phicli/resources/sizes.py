"""The size of a model: from the headers of its weights, from its config, or from what is known of published ones."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.architectures import in_layer
from phicli.artifacts.tensors import check_safetensors
from phicli.errors import BadInput, Missing, RemoteError
from phicli.hub.fetching import cached_file, fetch_config, judge_file
from phicli.hub.gguf import is_gguf, judge_gguf, judge_remote
from phicli.hub.models import judge_config, local_model, read_config, weight_files
from phicli.hub.whole import cured

PACKED = 8  # int4 in an int32

# hidden, layers, MLP width, heads, key-value heads, vocabulary, output projection apart from the embedding
PUBLISHED = {
    "microsoft/phi-3.5-mini-instruct": (3072, 32, 8192, 32, 32, 32064, True),
    "microsoft/phi-3-mini-4k-instruct": (3072, 32, 8192, 32, 32, 32064, True),
    "microsoft/phi-3-mini-128k-instruct": (3072, 32, 8192, 32, 32, 32064, True),
    "microsoft/phi-3-medium-4k-instruct": (5120, 40, 17920, 40, 10, 32064, True),
    "microsoft/phi-3-medium-128k-instruct": (5120, 40, 17920, 40, 10, 32064, True),
    "microsoft/phi-4": (5120, 40, 17920, 40, 10, 100352, True),
    "microsoft/phi-4-mini-instruct": (3072, 32, 8192, 24, 8, 200064, False),
}


@dataclass(frozen=True)
class ModelSize:
    """Parameter counts and widths of a decoder-only model.

    layer_params: of all linears in the layers. outer_params: of the embedding, and of the output projection if it is
    another matrix. vocab, hidden, layers: as in the config. widest: inputs of the widest linear. largest: parameters of
    the largest linear. edges: inputs plus outputs of all linears in the layers; a LoRA of rank r has r times as many
    parameters. weight_bytes: of the files. source: what this was told from.
    """

    layer_params: int
    outer_params: int
    vocab: int
    hidden: int
    layers: int
    widest: int
    largest: int
    edges: int
    weight_bytes: int
    quantized: bool
    source: str

    @property
    def params(self) -> int:
        return self.layer_params + self.outer_params


def size_of_model(reference: str, fetch: bool = False) -> ModelSize | None:
    """Of a folder, a GGUF file, a built-in model or a Hugging Face id, without the network; None where it is not known.

    fetch: config.json, or a GGUF file's header, of a model of the hub that neither is published nor cached is fetched,
    if the hub can be reached.

    Raises:
        BadInput: no such folder, a damaged one or no model's; or what was fetched is of a model that phicli cannot
            work with.
    """
    place = None if reference.startswith("azureml:") else local_model(reference)
    if place and place.is_dir():
        read_config(place)  # weights alone may be an adapter's, or anybody's
        return size_of_folder(place)
    if place:
        return size_of_gguf(place)
    known = PUBLISHED.get(reference.lower())
    if known:
        hidden, layers, width, heads, kv_heads, vocab, apart = known
        config = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": width, "vocab_size": vocab,
                  "num_attention_heads": heads, "num_key_value_heads": kv_heads, "tie_word_embeddings": not apart}
        return size_of_config(config, "what is published of it")
    if not reference.startswith("azureml:") and (theirs := _config(reference, fetch)):
        return size_of_config(theirs, "its header" if is_gguf(reference) else "its config.json")
    billions = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)b(?![a-z])", reference.lower())
    return _guessed(float(billions[1]) * 1e9) if billions else None


@cured
def size_of_folder(folder: Path) -> ModelSize:
    """From the headers of the weights. Raises BadInput for a damaged file or none."""
    inner: list[tuple[int, int]] = []  # (outputs, inputs) of linears in layers
    outer: list[tuple[int, int]] = []
    layers, weight_bytes, quantized = set(), 0, False
    for path in weight_files(folder):
        weight_bytes += path.stat().st_size
        for name, entry in check_safetensors(path).items():
            found, shape = in_layer(name), entry["shape"]
            if found:
                layers.add(found[0])
            if len(shape) < 2 or name.endswith((".scales", ".qzeros")):
                continue
            if name.endswith(".qweight"):
                quantized = True
                awq = entry["dtype"] == "I32"  # (inputs, outputs / 8); Olive's is (outputs, inputs / 2)
                shape = [shape[1] * PACKED, shape[0]] if awq else [shape[0], shape[1] * 2]
            (inner if found else outer).append((math.prod(shape[:-1]), shape[-1]))
    vocab, hidden = max(outer, default=(0, 0), key=math.prod)
    counts = [math.prod(shape) for shape in inner]
    return ModelSize(
        layer_params=sum(counts), outer_params=sum(math.prod(shape) for shape in outer), vocab=vocab, hidden=hidden,
        layers=len(layers), widest=max((inputs for _, inputs in inner), default=0), largest=max(counts, default=0),
        edges=sum(sum(shape) for shape in inner), weight_bytes=weight_bytes, quantized=quantized, source="its files",
    )


def size_of_gguf(path: Path) -> ModelSize | None:
    """Of the model that a GGUF file is unpacked to, in 16 bits. Raises BadInput: phicli cannot work with it."""
    return size_of_config(judge_gguf(path)[1], "its header")


def size_of_config(config: dict[str, Any], source: str) -> ModelSize | None:
    """Of a Llama-like model (Phi, Mistral, Qwen, Gemma), 2 bytes a weight; None if a figure is missing."""
    config = {**config, **(config.get("text_config") or {})}
    try:
        hidden, layers, width, vocab = (int(config[k]) for k in ("hidden_size", "num_hidden_layers",
                                                                "intermediate_size", "vocab_size"))
        heads = int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        kv = int(config.get("num_key_value_heads") or heads) * head
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    q = heads * head
    shapes = [(hidden, q + 2 * kv), (q, hidden), (hidden, 2 * width), (width, hidden)]  # q, k, v and gate, up as one
    outer = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
    inner = layers * sum(map(math.prod, shapes))
    return ModelSize(inner, outer, vocab, hidden, layers, max(width, hidden), max(map(math.prod, shapes)),
                     layers * sum(map(sum, shapes)), 2 * (inner + outer), False, source)


def _guessed(params: float) -> ModelSize:
    """A model of so many parameters, in the proportions of Phi-3.5-mini."""
    scale = math.sqrt(params / 3.82e9)
    hidden = int(3072 * scale)
    config = {"hidden_size": hidden, "num_hidden_layers": 32, "intermediate_size": int(8192 * scale),
              "vocab_size": int(32064 * scale), "num_attention_heads": 32, "head_dim": hidden // 32}
    size = size_of_config(config, "the number of parameters in its name")
    assert size is not None  # all figures are there
    return size


def _config(reference: str, fetch: bool) -> dict[str, Any] | None:
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError, Missing, RemoteError, *(() if fetch else (BadInput,))):
        if is_gguf(reference):
            here = cached_file(reference)
            return judge_gguf(here)[1] if here else judge_file(reference, judge_remote) if fetch else None
        file = cached_file(f"{reference}/config.json")
        if file or fetch:
            return judge_config(file.parent if file else fetch_config(reference))
    return None
