"""Whether a model's config.json and its weights are of one language model, from the headers alone.

All that later steps rely on is looked at before anything is loaded, so that the first command says what is wrong.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phicli.architectures import ARCHITECTURES, EMBEDDINGS, in_layer, last
from phicli.errors import BadInput

COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
          "head_dim", "vocab_size", "max_position_embeddings", "n_embd", "n_head", "n_layer")
LARGEST = 1 << 24  # of positions, say; builders make tables of that many rows
PARTS = ("text_config", "vision_config", "audio_config", "encoder", "is_encoder_decoder")  # more than one decoder
DTYPES = ("float16", "bfloat16", "float32", "float64", "auto")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
ROPE_SCALINGS = ("default", "linear", "llama3", "yarn")  # "dynamic" is another at every length of a text
LONG_ROPE = ("longrope", "su")
TASKS = ("ForCausalLM", "LMHeadModel")
EMBEDDING = tuple(f"{name}.weight" for name in EMBEDDINGS)
ANOTHER = "a language model that is a decoder alone, such as microsoft/Phi-3.5-mini-instruct"


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Check that a config.json describes a decoder, with sizes that can be.

    Raises:
        BadInput: parts beside the decoder, another task, no architecture, a size or number type that cannot be.
    """
    parts = [name for name in PARTS if config.get(name)]
    if parts:
        raise BadInput(f"a model of several parts ({parts[0]})", where=path, hint=ANOTHER)
    found = config.get("architectures")
    task = found[0] if isinstance(found, list) and found and isinstance(found[0], str) else None
    if not task:
        raise BadInput("no architectures in it", where=path, hint='"architectures": ["LlamaForCausalLM"], or as it is')
    if not task.endswith(TASKS):
        raise BadInput(f"{task} is no causal language model", where=path, hint=ANOTHER)
    for name in COUNTS:
        value = config.get(name)
        if value is not None and not (_whole(value) and 0 < value <= LARGEST):
            raise BadInput(f"{name} is {str(value)[:40]}", where=path, hint="a whole number from 1 on")
    dtype = config.get("dtype") or config.get("torch_dtype") or "auto"
    if dtype not in DTYPES:
        raise BadInput(f"dtype is {str(dtype)[:40]!r}", where=path, hint=", ".join(DTYPES[:-1]))
    if "quantization_config" in config:
        _check_quantization(config["quantization_config"], path)
    check_family(config, path)
    heads, kv = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads and kv and heads % kv:
        raise BadInput(f"{heads} attention heads cannot share {kv} of keys and values", where=path)


def check_family(config: Mapping[str, Any], path: Path) -> None:
    """Check that every step can be done with this kind of model.

    Raises:
        BadInput: a mixture of experts, another family than those of `ARCHITECTURES`, or positions that are scaled in a
            way that no graph has.
    """
    kind = config["model_type"]
    if experts := next((name for name in EXPERTS if config.get(name)), None):
        raise BadInput(f"a mixture of experts ({experts})", where=path, hint=ANOTHER)
    if kind not in ARCHITECTURES:
        raise BadInput(f"'{kind[:40]}' is none of the families that phicli knows", where=path,
                       hint=f"a model of another: {', '.join(ARCHITECTURES)}")
    ropes = [rope for name in ("rope_parameters", "rope_scaling") if isinstance(rope := config.get(name), dict)]
    for part in [part for rope in ropes for part in (rope, *rope.values()) if isinstance(part, dict)]:
        scaling = part.get("rope_type") or part.get("type") or "default"
        if scaling not in ROPE_SCALINGS and not (kind == "phi3" and scaling in LONG_ROPE):
            raise BadInput(f"rope scaling {str(scaling)[:40]!r} cannot be built for '{kind}'", where=path,
                           hint=f"a model without, or with {', '.join(ROPE_SCALINGS[1:])}")


def _check_quantization(found: Any, path: Path) -> None:
    """Raise BadInput for a quantization_config whose number of bits, of all or of single linears, cannot be."""
    own = (found.get("overrides") or {}) if isinstance(found, dict) else None
    parts = [found, *own.values()] if isinstance(own, dict) else [None]
    if not all(isinstance(part, dict) and part.get("bits", 4) in (2, 3, 4, 8) for part in parts):
        raise BadInput("damaged quantization_config", where=path, hint="phicli quantize")


def check_weights_fit(config: Mapping[str, Any], headers: Mapping[str, Any], folder: Path) -> None:
    """Check the number of layers, the embedding and the linears of a checkpoint against its config.

    Args:
        headers: tensor name -> its entry in a safetensors header; quantized linears are those without a "weight".

    Raises:
        BadInput: another model's config.
    """
    layers = {found[0] for name in headers if (found := in_layer(name))}
    wanted = config.get("num_hidden_layers") or config.get("n_layer")
    more = config.get("num_nextn_predict_layers") or 0
    if wanted and not (wanted <= len(layers) <= wanted + (more if _whole(more) else 0) and max(layers) < len(layers)):
        raise BadInput(f"config.json says {wanted} layers, the weights have {len(layers)}", where=folder)
    for name, entry in headers.items():
        if name.endswith(EMBEDDING) and not in_layer(name):
            rows, width = config.get("vocab_size"), config.get("word_embed_proj_dim") or config.get("hidden_size")
            _check_shape(name, entry["shape"], (rows, width), folder)
    check_linears(config, {name.removesuffix(".weight"): entry["shape"] for name, entry in headers.items()
                           if name.endswith(".weight") and in_layer(name)}, folder)


def check_linears(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Check the shapes (outputs, inputs) of linears in layers, where config.json says them; raises BadInput."""
    if known := ARCHITECTURES.get(config["model_type"]):
        wanted = _linear_shapes(config)
        for name, shape in shapes.items():
            found = in_layer(name)
            if found and (linear := last(known.usual_path(found[1]))) in wanted:
                _check_shape(name, shape, wanted[linear], folder)


def _linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int | None, int | None]]:
    """Outputs and inputs of the linears of a Llama-like layer; None where config.json does not say."""
    hidden, width, heads = (config.get(key) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    q = heads * head if heads and head else None
    kv = (config.get("num_key_value_heads") or heads) * head if heads and head else None
    both = q + 2 * kv if q and kv else None
    return {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q),
            "qkv_proj": (both, hidden), "gate_proj": (width, hidden), "up_proj": (width, hidden),
            "gate_up_proj": (2 * width if width else None, hidden), "down_proj": (hidden, width)}


def _check_shape(name: str, have: Sequence[int], need: tuple[int | None, int | None], folder: Path) -> None:
    if len(have) != 2 or any(n is not None and n != m for m, n in zip(have, need, strict=True)):
        says = " x ".join("any" if n is None else str(n) for n in need)
        raise BadInput(f"{name} is {' x '.join(map(str, have))}, by config.json {says}", where=folder,
                       hint="config.json and weights of the same model")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
