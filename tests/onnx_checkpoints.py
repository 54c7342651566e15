"""Small checkpoints and adapters, and what they compute, by plain means."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from reference import dequantized_state
from safetensors.torch import load_file, save_file

from phicli.checkpoints.awq import pack_linear, quantization_config

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
              "generation_config.json")


def random_model(folder: Path, tokenizer: Path, kind: str) -> Path:
    """A random two-layer "llama" or "qwen2" with grouped-query attention and an odd number of groups of inputs."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    common = {"hidden_size": 384, "intermediate_size": 640, "num_hidden_layers": 2, "num_attention_heads": 6,
              "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 512, "bos_token_id": 0,
              "eos_token_id": 0, "initializer_range": 0.06}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=False))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**common, tie_word_embeddings=True))
        for layer in model.model.layers:  # biases that matter
            for name in ("q_proj", "k_proj", "v_proj"):
                torch.nn.init.normal_(getattr(layer.self_attn, name).bias, std=0.1)
    model.save_pretrained(folder)
    for name in TEXT_FILES[:4]:
        shutil.copy(tokenizer / name, folder / name)
    return folder


def nearest_awq(source: Path, folder: Path, group: int = 128, skip: tuple[str, ...] = (),
                symmetric: bool = False) -> Path:
    """An AWQ checkpoint of an unquantized one, each weight rounded to nearest. symmetric: zero points of 8."""
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if ".layers." not in name or weight.ndim != 2 or module.endswith(skip or "\0"):
            tensors[name] = weight
            continue
        blocks = weight.double().unflatten(1, (-1, group))
        low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
        if symmetric:
            high = blocks.abs().amax(2)
            low = -8 / 7 * high
        scale = ((high - low) / 15).half().double()
        zero = (-low / scale).round().clamp(0, 15)
        integers = ((blocks / scale[..., None]).round() + zero[..., None]).clamp(0, 15).flatten(1)
        for part, tensor in pack_linear(integers, scale, zero).items():
            tensors[f"{module}.{part}"] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = quantization_config(group, list(skip))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_adapter(model: Path, folder: Path, size: float = 0.02, **settings) -> Path:
    """A PEFT LoRA adapter of an unquantized model with random A and B. settings: of peft.LoraConfig."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(len(folder.name))
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=size if "lora_B" in name else 0.2)
    adapted.save_pretrained(folder)
    return folder


class Reference:
    """The float32 transformers model that a checkpoint stands for, with an adapter's update added in float64."""

    def __init__(self, original: Path, state: dict[str, torch.Tensor]):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()
        self.state = state

    @classmethod
    def of_awq(cls, original: Path, checkpoint: Path) -> "Reference":
        return cls(original, dequantized_state(checkpoint))

    @torch.no_grad()
    def logits(self, ids: list[int], updates: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """updates: full name of a linear -> float64 (outputs, inputs) to add to its weight."""
        state = dict(self.state)
        for name, update in (updates or {}).items():
            weight = state[f"{name}.weight"].double()
            state[f"{name}.weight"] = (weight + torch.from_numpy(update)).float()
        self.model.load_state_dict(state, strict=False)
        self.model.tie_weights()
        return self.model(torch.tensor([ids])).logits[0].numpy()


def peft_updates(folder: Path) -> dict[str, np.ndarray]:
    """scaling * B A of each linear of an adapter, the scaling as the LoRA and rsLoRA papers define it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    updates = {}
    for key, a in tensors.items():
        if ".lora_A." in key:
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            alpha = config["lora_alpha"]
            for ending, own in (config["alpha_pattern"] or {}).items():
                alpha = own if name.endswith(ending) else alpha
            rank = a.shape[0] ** (0.5 if config["use_rslora"] else 1)
            b = tensors[key.replace("lora_A", "lora_B")]
            updates[name] = (alpha / rank * (b.double() @ a.double())).numpy()
    return updates


def compare(reference: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Mean KL divergence (nats a token) of `other` from `reference`, and the share of equal likeliest tokens."""
    p, q = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), axis=1, keepdims=True)
            for x in (reference, other))
    return float((np.exp(p) * (p - q)).sum(1).mean()), float((p.argmax(1) == q.argmax(1)).mean())
