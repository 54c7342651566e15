"""A small random model of each family of decoders, with the flags of its real config.json: only the sizes are small."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TINY = 4096  # tokens of the built-in model's tokenizer
SIZES: dict[str, Any] = {"vocab_size": TINY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "pad_token_id": 0,
                         "eos_token_id": 0, "tie_word_embeddings": False}


ATTENTION = re.compile(r"(q_proj|k_proj|qkv_proj|q_norm|k_norm)\.weight")


def factors(count: int, most: float) -> list[float]:
    """LongRoPE's: one for each frequency, from 1 on."""
    return [1 + (most - 1) * i / count for i in range(count)]


def longrope(frequencies: int) -> dict[str, Any]:
    """As hub models say it."""
    return {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "sliding_window": 262144,
            "rope_theta": 10000.0, "rope_scaling": {"type": "longrope", "long_factor": factors(frequencies, 40),
                                                    "short_factor": factors(frequencies, 1.3)}}


def resaved(config: dict[str, Any]) -> dict[str, Any]:
    """Its rope settings as transformers 5 saves them."""
    rope = {"rope_type": config["rope_scaling"]["type"], "rope_theta": config["rope_theta"], **config["rope_scaling"]}
    rope.pop("type")
    return {**{k: v for k, v in config.items() if not k.startswith("rope_")}, "rope_parameters": rope}


@dataclass(frozen=True)
class Family:
    """name: as people call it. kind: its model_type. what: that is special. config: what differs from SIZES.

    beyond: a length past which its arithmetic changes (a window, LongRoPE's boundary), or just some length.
    ends: ids that end an answer, in generation_config.json.
    """

    name: str
    kind: str
    what: str
    config: dict[str, Any] = field(default_factory=dict)
    beyond: int = 300
    ends: tuple[int, ...] = ()


def _llama3(**more: Any) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}
    return {"max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": scaling, "rms_norm_eps": 1e-5,
            "head_dim": 64, **more}


FAMILIES = [
    Family("Phi-3 mini and medium 4k", "phi3", "window 2047",
           {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "sliding_window": 2047}, 2300,
           (0, 4)),
    Family("Phi-3 mini 128k, Phi-3.5 mini", "phi3", "LongRoPE over its boundary", longrope(16), 4200, (0, 4)),
    Family("Phi-4", "phi3", "grouped-query",
           {"max_position_embeddings": 16384, "original_max_position_embeddings": 16384, "rope_theta": 250000.0}),
    Family("Phi-4 mini", "phi3", "LongRoPE over its boundary, partial rotary, tied embeddings",
           {**resaved(longrope(24)), "hidden_size": 256, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
           4200, (0, 4)),
    Family("Llama 3.1, 3.3", "llama", "Llama 3's scaling, grouped-query, several ends", _llama3(), ends=(0, 3, 4)),
    Family("Llama 3.2", "llama", "Llama 3's scaling, tied embeddings", _llama3(tie_word_embeddings=True), ends=(0, 4)),
    Family("Mistral 7B v0.1", "mistral", "window 4096",
           {"sliding_window": 4096, "max_position_embeddings": 32768}, 4300),
    Family("Mistral 7B v0.3, Nemo", "mistral", "heads wider than the hidden size",
           {"sliding_window": None, "rope_theta": 1e6, "max_position_embeddings": 32768, "head_dim": 64}),
    Family("Qwen2.5", "qwen2", "biases, tied embeddings, a window that is off",
           {"use_sliding_window": False, "sliding_window": 128, "max_window_layers": 1, "rope_theta": 1e6,
            "max_position_embeddings": 32768, "tie_word_embeddings": True}, ends=(0, 4)),
    Family("Qwen3", "qwen3", "norms of queries and keys, wide heads, tied embeddings",
           {"head_dim": 64, "use_sliding_window": False, "sliding_window": None, "rope_theta": 1e6,
            "max_position_embeddings": 40960, "tie_word_embeddings": True}, ends=(0, 4)),
    Family("Qwen2.5 and 3 with YaRN", "qwen3", "YaRN without its betas",
           {"head_dim": 64, "rope_theta": 1e6, "max_position_embeddings": 32768, "rope_scaling": {
               "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}}),
    Family("Gemma", "gemma", "one head of keys, scaled embeddings, norms from 1 on",
           {"head_dim": 64, "num_key_value_heads": 1, "max_position_embeddings": 8192, "tie_word_embeddings": True}),
    Family("Gemma 2", "gemma2", "window 4096 in every other layer, soft caps, four norms",
           {"head_dim": 64, "sliding_window": 4096, "query_pre_attn_scalar": 64, "max_position_embeddings": 8192,
            "tie_word_embeddings": True}, 4300, (0, 4)),
    Family("Gemma 3 (text)", "gemma3_text", "window 512 in five of six layers, two rotary bases, q/k norms",
           {"head_dim": 64, "num_key_value_heads": 1, "sliding_window": 512, "query_pre_attn_scalar": 64,
            "sliding_window_pattern": 6, "num_hidden_layers": 6, "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
            "max_position_embeddings": 32768, "tie_word_embeddings": True}, 800, (0, 4)),
    Family("Gemma 3 4B to 27B, text alone", "gemma3_text", "linear scaling of the global layers",
           {"head_dim": 64, "sliding_window": 1024, "query_pre_attn_scalar": 64, "sliding_window_pattern": 2,
            "rope_theta": 1e6, "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "max_position_embeddings": 131072, "tie_word_embeddings": True}, 1300, (0, 4)),
    Family("SmolLM2", "llama", "widths of 576, tied embeddings",
           {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
            "rope_theta": 100000.0, "max_position_embeddings": 8192, "tie_word_embeddings": True}),
    Family("SmolLM3", "smollm3", "no rotary embedding in every fourth layer",
           {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4, "rope_theta": 5e6,
            "use_sliding_window": False, "max_position_embeddings": 65536, "tie_word_embeddings": True}),
    Family("Granite 3", "granite", "multipliers, tied embeddings",
           {"embedding_multiplier": 0.5, "attention_multiplier": 0.03125, "residual_multiplier": 0.22,
            "logits_scaling": 8.0, "rope_theta": 1e7, "max_position_embeddings": 131072, "tie_word_embeddings": True}),
    Family("OLMo 2", "olmo2", "norms after attention and MLP, q/k norms over all heads",
           {"rope_theta": 500000.0, "max_position_embeddings": 4096}),
    Family("Phi-1.5", "phi", "partial rotary, biases, attention beside the MLP",
           {"partial_rotary_factor": 0.5, "max_position_embeddings": 2048, "num_key_value_heads": 4}),
    Family("Phi-2", "phi", "partial rotary of 0.4 of heads of 80",
           {"partial_rotary_factor": 0.4, "hidden_size": 320, "intermediate_size": 640, "num_key_value_heads": 4,
            "max_position_embeddings": 2048}),
]


def make(family: Family, folder: Path, tokenizer: Path) -> Path:
    """Write the model, its weights drawn anew so that norms and biases matter too, beside the built-in tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family.kind, **SIZES, **family.config}))
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0, 0.6 * parameter.shape[1] ** -0.5)
        model.get_output_embeddings().weight.mul_(getattr(config, "logits_scaling", 1))
        for name, parameter in model.named_parameters():
            if ATTENTION.search(name):  # attention that looks at few places, so that it matters which
                parameter.mul_(3)
    model.half().save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    given = {"model_type": family.kind, "architectures": written["architectures"], "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps({**SIZES, **family.config, **given}))  # as on the hub
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder)
    ends = list(family.ends or (0,))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": ends}))
    return folder


REFUSED: dict[str, dict[str, Any]] = {
    "Phi-3.5 MoE": {"model_type": "phimoe", "architectures": ["PhiMoEForCausalLM"], "num_local_experts": 16},
    "Mixtral": {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8},
    "Qwen3 MoE": {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128},
    "Phi-3 small": {"model_type": "phi3small", "architectures": ["Phi3SmallForCausalLM"],
                    "auto_map": {"AutoModelForCausalLM": "modeling_phi3_small.Phi3SmallForCausalLM"}},
    "Phi-3.5 vision": {"model_type": "phi3_v", "architectures": ["Phi3VForCausalLM"],
                       "auto_map": {"AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM"}},
    "Phi-4 multimodal": {"model_type": "phi4mm", "architectures": ["Phi4MMForCausalLM"],
                         "auto_map": {"AutoModelForCausalLM": "modeling_phi4mm.Phi4MMForCausalLM"}},
    "Gemma 3 4B to 27B": {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
                          "text_config": {"model_type": "gemma3_text"}, "vision_config": {}},
    "Qwen2.5-VL": {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]},
    "BERT": {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
    "T5": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
    "GPT-2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
    "Llama with dynamic scaling": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
}


def write_refused(name: str, folder: Path) -> Path:
    """The config.json of a model that is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES, **REFUSED[name]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
