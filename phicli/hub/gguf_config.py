"""What a GGUF file says of its model, as the config.json and the tensor names of Hugging Face's form.

llama.cpp keeps scaled positions as factors beside the weights, and much else under names of its own. What is not
understood is refused: a model without it would answer, but worse.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from phicli.artifacts.gguf import GgufHeader
from phicli.errors import BadInput
from phicli.hub.fitting import ANOTHER

ORIGINAL = "the model that the file was made from, as a folder or id"
KEYS = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "vocab_size": "vocab_size",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window", "rope.freq_base": "rope_theta",
}
SCALING = {"type", "factor", "original_context_length", "attn_factor", "finetuned"}
UNDERSTOOD = {*KEYS, *(f"rope.scaling.{name}" for name in SCALING), "rope.dimension_count", "attention.value_length"}
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, of a turn, of a message

OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
         "output.weight": "lm_head.weight"}
LLAMA = {"attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight",
         "attn_q.weight": "self_attn.q_proj.weight", "attn_k.weight": "self_attn.k_proj.weight",
         "attn_v.weight": "self_attn.v_proj.weight", "attn_output.weight": "self_attn.o_proj.weight",
         "ffn_gate.weight": "mlp.gate_proj.weight", "ffn_up.weight": "mlp.up_proj.weight",
         "ffn_down.weight": "mlp.down_proj.weight"}
BIASES = {f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"}
NORMS = {f"attn_{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"}
PHI3 = {"attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight",
        "attn_qkv.weight": "self_attn.qkv_proj.weight", "attn_output.weight": "self_attn.o_proj.weight",
        "ffn_up.weight": "mlp.gate_up_proj.weight", "ffn_down.weight": "mlp.down_proj.weight"}
FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")  # LongRoPE's
LLAMA3 = "rope_freqs.weight"


@dataclass(frozen=True)
class Family:
    """layer: tensors of a layer, llama.cpp's name -> Hugging Face's. beside: those that become settings.

    turned: the tensors whose rows llama.cpp keeps in another order, since it turns neighbours by one angle.
    """

    architecture: str
    layer: Mapping[str, str]
    beside: tuple[str, ...] = ()
    turned: Mapping[str, str] = field(default_factory=dict)


FAMILIES = {
    "llama": Family("LlamaForCausalLM", LLAMA, (LLAMA3,), {"attn_q.weight": "num_attention_heads",
                                                           "attn_k.weight": "num_key_value_heads"}),
    "qwen2": Family("Qwen2ForCausalLM", LLAMA | BIASES),
    "qwen3": Family("Qwen3ForCausalLM", LLAMA | NORMS),
    "phi3": Family("Phi3ForCausalLM", PHI3, FACTORS),
}


def family_of(header: GgufHeader) -> Family:
    """Raises BadInput for an architecture that is not known, a mixture of experts, and one part of several."""
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise BadInput("one of several parts of a model", where=header.path,
                       hint="llama-gguf-split --merge FIRST_PART OUT.gguf")
    if header.get("expert_count"):
        raise BadInput("a mixture of experts (expert_count)", where=header.path, hint=ANOTHER)
    if header.architecture not in FAMILIES:
        raise BadInput(f"the architecture '{header.architecture[:40]}' is not read from GGUF", where=header.path,
                       hint=f"{ORIGINAL}; GGUF files: {', '.join(FAMILIES)}")
    return FAMILIES[header.architecture]


def config_of(header: GgufHeader, factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """The config.json of the model, whose sizes are still to be judged.

    Args:
        factors: the numbers in the tensors of `beside` that the file has.

    Raises:
        BadInput: as `family_of`, or a setting that is not understood or that cannot be.
    """
    family, begin = family_of(header), f"{header.architecture}."
    known = UNDERSTOOD - ({"attention.sliding_window"} if header.architecture.startswith("qwen") else set())
    strange = [key for key in header.metadata if key.startswith(begin) and key.removeprefix(begin) not in known]
    if strange:
        raise BadInput(f"its setting {strange[0][:80]} is not understood", where=header.path, hint=ORIGINAL)
    found = {name: value for key, name in KEYS.items() if (value := header.get(key)) is not None}
    if not all(isinstance(value, (int, float)) for value in found.values()):
        raise BadInput("settings that are no numbers", where=header.path, hint=ORIGINAL)
    config = {"architectures": [family.architecture], "model_type": header.architecture, "rope_theta": 10000.0,
              "vocab_size": len(header.metadata.get("tokenizer.ggml.tokens", ())),
              "num_key_value_heads": found.get("num_attention_heads"), **found,
              "tie_word_embeddings": "output.weight" not in header.tensors}
    for key, name in TOKENS.items():
        config[name] = header.metadata.get(f"tokenizer.ggml.{key}")
    if not config.setdefault("sliding_window", None):
        config["sliding_window"] = None
    elif header.architecture == "llama":
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    try:
        return config | _positions(header, config, factors)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise BadInput("settings of positions that cannot be", where=header.path, hint=ORIGINAL) from None


def ends_of(header: GgufHeader) -> list[int]:
    """The tokens that end an answer, as generation_config.json lists them."""
    found = (header.metadata.get(f"tokenizer.ggml.{key}") for key in ENDS)
    return sorted({ident for ident in found if isinstance(ident, int)})


def names_of(header: GgufHeader, layers: int) -> dict[str, str]:
    """Hugging Face's name of every tensor of the model. Raises BadInput where one lacks or is not understood."""
    family = family_of(header)
    wanted = OUTER | {f"blk.{i}.{name}": f"model.layers.{i}.{path}"
                      for i in range(layers) for name, path in family.layer.items()}
    have = header.tensors.keys() - set(family.beside)
    if lacking := wanted.keys() - have - {"output.weight"}:
        raise BadInput(f"{min(lacking)} is missing", where=header.path)
    if strange := have - wanted.keys():
        raise BadInput(f"its tensor {min(strange)[:80]} is not understood", where=header.path, hint=ORIGINAL)
    return {name: wanted[name] for name in header.tensors if name in have}


def _positions(header: GgufHeader, config: Mapping[str, Any], factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """rope_scaling and what goes with it."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    turned, trained = header.get("rope.dimension_count", head), header.get("rope.scaling.original_context_length")
    kind, factor = header.get("rope.scaling.type", "none"), header.get("rope.scaling.factor")
    if header.architecture == "phi3":
        found = {"partial_rotary_factor": turned / head,
                 "original_max_position_embeddings": trained or config["max_position_embeddings"]}
        if factors:
            long, short = (factors[name] for name in FACTORS)
            found["rope_scaling"] = {"type": "longrope", "long_factor": long, "short_factor": short}
        return found
    if turned != head or header.get("attention.value_length", head) != head:
        raise ValueError("rotary embeddings of a part, or two widths of heads")
    if LLAMA3 in factors:
        return {"head_dim": head, "rope_scaling": _llama3(factors[LLAMA3], config["rope_theta"], head)}
    if kind == "none":
        return {"head_dim": head}
    scaling = {"rope_type": kind, "factor": float(factor)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = trained
    elif kind != "linear":
        raise ValueError(kind)
    return {"head_dim": head, "rope_scaling": scaling}


def _llama3(divisors: list[float], theta: float, head: int) -> dict[str, Any]:
    """Llama 3's scaling that gives these divisors of the frequencies. Raises ValueError where none does."""
    factor, low, high, trained = max(divisors), 1.0, 4.0, 8192
    for i, divisor in enumerate(divisors):
        turns = trained / (2 * math.pi * theta ** (2 * i / head))  # in a text of the trained length
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        if not math.isclose(divisor, 1 / ((1 - share) / factor + share), rel_tol=1e-4):
            raise ValueError("another scaling")
    if len(divisors) != head // 2:
        raise ValueError("divisors of another width")
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": trained}
