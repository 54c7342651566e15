"""Random models of Phi-3.5-mini's shape, for measurements in which the numbers in the weights do not matter."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phicli.checkpoints.awq import PER_WORD, quantization_config
from phicli.hub.models import BUILT_IN
from phicli.quantization.shards import ShardWriter

SHAPE: dict[str, Any] = {
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000,
}
PHI4: dict[str, Any] = {  # Phi-4-mini's: keys and values of 8 heads, a large vocabulary in one matrix
    **SHAPE, "vocab_size": 200064, "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True,
    "max_position_embeddings": 16384, "original_max_position_embeddings": 16384,
}
SPREAD = 0.02  # standard deviation of the weights, as models are initialized
STEPS = 4.7  # standard deviation of integers minus zero points, both as `random_awq_checkpoint` draws them
GGUF_BLOCK, GGUF_KINDS = 32, {"Q4_0": 18, "Q8_0": 34}  # bytes of a block: a scale in float16, then the integers
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def random_phi(folder: Path, layers: int, seed: int, shape: dict[str, Any] = SHAPE) -> Path:
    """Write a float16 model; a few of its norms' channels are loud, as in real models."""
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(seed)
    with torch.device(_device()):
        torch.set_default_dtype(torch.float16)
        model = Phi3ForCausalLM(Phi3Config(**shape, num_hidden_layers=layers))
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[torch.randperm(shape["hidden_size"])[:24]] *= 20
    model.save_pretrained(folder)
    _copy_tokenizer(folder)
    return folder


def random_awq_checkpoint(folder: Path, layers: int, seed: int, group_size: int = 128,
                          shape: dict[str, Any] = SHAPE) -> Path:
    """Write an AWQ "gemm" checkpoint, as `phicli quantize` does, without a model to make it from.

    Integers are uniform, zero points from 6 to 9, norms one. 32 layers take 2.3 GB of disk, 1 GB of memory and seconds.
    """
    folder.mkdir(parents=True)
    hidden, wide, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    qkv = hidden // heads * (heads + 2 * kv_heads)
    linears = {"self_attn.qkv_proj": (hidden, qkv), "self_attn.o_proj": (hidden, hidden),
               "mlp.gate_up_proj": (hidden, 2 * wide), "mlp.down_proj": (wide, hidden)}
    generator = torch.Generator(_device()).manual_seed(seed)
    with ShardWriter(folder) as writer:
        writer.add("model.embed_tokens.weight", _random_floats(vocabulary, hidden, generator))
        for layer in range(layers):
            prefix = f"model.layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                writer.add(f"{prefix}{norm}.weight", torch.ones(hidden))
            for name, (inputs, outputs) in linears.items():
                for kind, tensor in _random_linear(inputs, outputs, group_size, generator).items():
                    writer.add(f"{prefix}{name}.{kind}", tensor)
        writer.add("model.norm.weight", torch.ones(hidden))
        if not shape["tie_word_embeddings"]:
            writer.add("lm_head.weight", _random_floats(vocabulary, hidden, generator))
        writer.finish()
    config = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_hidden_layers": layers, **shape,
              "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu", "sliding_window": None,
              "torch_dtype": "float16", "quantization_config": quantization_config(group_size, ["lm_head"])}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    _copy_tokenizer(folder)
    return folder


def random_gguf(path: Path, layers: int) -> Path:
    """Write a GGUF file of Llama's graph with Phi's sizes, weights in Q4_0 (4.5 bits) and a head in Q8_0."""
    from gguf import GGMLQuantizationType, GGUFWriter

    hidden, wide, vocabulary, heads = (SHAPE[name] for name in (
        "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"))
    writer, rng = GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")

    def linear(name: str, outputs: int, inputs: int, kind: str = "Q4_0") -> None:
        blocks = rng.integers(0, 256, (outputs, inputs // GGUF_BLOCK, GGUF_KINDS[kind]), np.uint8)
        blocks[..., :2] = np.array([0.004 if kind == "Q4_0" else 0.0003], np.float16).view(np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(outputs, -1), raw_dtype=GGMLQuantizationType[kind])

    linear("token_embd", vocabulary, hidden)
    linear("output", vocabulary, hidden, "Q8_0")
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            linear(f"blk.{layer}.{name}", hidden, hidden)
        linear(f"blk.{layer}.ffn_gate", wide, hidden)
        linear(f"blk.{layer}.ffn_up", wide, hidden)
        linear(f"blk.{layer}.ffn_down", hidden, wide)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _random_linear(inputs: int, outputs: int, group_size: int, generator: torch.Generator) -> dict[str, Tensor]:
    groups = inputs // group_size
    scales = torch.rand((groups, outputs), generator=generator, device=generator.device)
    return {"qweight": _random_words(inputs, outputs // PER_WORD, generator),
            "qzeros": (_random_words(groups, outputs // PER_WORD, generator) & 0x33333333) + 0x66666666,
            "scales": (SPREAD / STEPS) * (0.75 + 0.5 * scales)}


def _random_words(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-(1 << 31), 1 << 31, (rows, columns), dtype=torch.int32, generator=generator,
                         device=generator.device)


def _random_floats(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return SPREAD * torch.randn((rows, columns), generator=generator, device=generator.device)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _copy_tokenizer(folder: Path) -> None:
    for name in TOKENIZER:
        shutil.copyfile(BUILT_IN / "tiny" / name, folder / name)
