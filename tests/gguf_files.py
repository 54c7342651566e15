"""GGUF files as llama.cpp's converter writes them, from small models in Hugging Face's form."""

import json
import math
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file
from transformers import AutoConfig

NAMES = {"llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
         "qwen3": gguf.MODEL_ARCH.QWEN3, "phi3": gguf.MODEL_ARCH.PHI3}


def write_gguf(folder: Path, path: Path, kind=gguf.GGMLQuantizationType.F16, without: str = "", **more) -> Path:
    """Write the model in a folder as a GGUF file.

    Args:
        kind: of matrices; vectors stay in float32. without: a tensor to leave out.
        more: further settings of the model's architecture, as {"rope.x": value}.
    """
    config = AutoConfig.from_pretrained(folder).to_dict()
    arch = NAMES[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    heads, head = config["num_attention_heads"], head_width(config)
    rope = config["rope_parameters"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(int(head * (rope.get("partial_rotary_factor") or 1)))
    if config["model_type"] in ("phi3", "mistral"):
        writer.add_sliding_window(config.get("sliding_window") or 0)
    for key, value in more.items():
        writer.add_key_value(f"{writer.arch}.{key}", value, gguf.GGUFValueType.FLOAT32 if isinstance(value, float)
                             else gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32)
    for name, factors in scaling_tensors(rope, head).items():
        writer.add_tensor(name, np.array(factors, np.float32))
    _add_tokenizer(writer, folder)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            theirs = names.get_name(name, (".weight", ".bias"))
            data = tensor.float().numpy()
            if writer.arch == "llama" and ("q_proj" in name or "k_proj" in name):
                count = heads if "q_proj" in name else config["num_key_value_heads"]
                data = data.reshape(count, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
            if theirs != without:
                vector = data.ndim == 1
                packed = data if vector else gguf.quants.quantize(data, kind)
                writer.add_tensor(theirs, packed, raw_dtype=None if vector else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def head_width(config: dict) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def scaling_tensors(rope: dict, head: int) -> dict[str, list[float]]:
    """Factors of positions, which llama.cpp keeps as tensors; Llama 3's by the formula of its converter."""
    kind = rope["rope_type"]
    if kind == "longrope":
        return {f"rope_factors_{one}.weight": rope[f"{one}_factor"] for one in ("long", "short")}
    if kind != "llama3":
        return {}
    old, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    found = []
    for i in range(0, head, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (i / head)
        smooth = (old / length - low) / (high - low)
        found.append(1.0 if length < old / high else rope["factor"] if length > old / low
                     else 1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": found}


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    vocab = {**tokenizer["model"]["vocab"], **{one["content"]: one["id"] for one in tokenizer["added_tokens"]}}
    special = {one["content"] for one in tokenizer["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocab[settings["bos_token"]])
    writer.add_eos_token_id(vocab[settings["eos_token"]])
    writer.add_eot_token_id(vocab["<|end|>"])
    writer.add_chat_template(settings["chat_template"])
