"""Plain references that the product is compared with."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from phicli.hub.models import weight_files


def dequantized_state(folder: Path) -> dict[str, torch.Tensor]:
    """An AWQ checkpoint's weights in float32, unpacked place by place as the format defines it."""
    tensors = {}
    for file in weight_files(folder):
        tensors.update(load_file(file))
    out = {}
    for name, tensor in tensors.items():
        base, _, kind = name.rpartition(".")
        if kind == "qweight":
            q, z = (unpack_columns(tensors[f"{base}.{k}"]) for k in ("qweight", "qzeros"))
            scales = tensors[f"{base}.scales"].double()
            size = q.shape[0] // scales.shape[0]
            group = torch.arange(q.shape[0]) // size
            out[f"{base}.weight"] = ((q - z[group]) * scales[group]).t().float()
        elif kind not in ("qzeros", "scales"):
            out[name] = tensor.float() if tensor.is_floating_point() else tensor
    return out


def unpack_columns(words: torch.Tensor) -> torch.Tensor:
    """AWQ's int32 (rows, columns / 8) to float64 (rows, columns)."""
    columns = torch.zeros(words.shape[0], words.shape[1] * 8, dtype=torch.float64)
    for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        columns[:, column::8] = ((words.long() >> (4 * place)) & 15).double()
    return columns


def pack(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers (rows, n) to uint8 (rows, n * bits / 8), the first in the lowest bits."""
    places = integers.to(torch.uint8).unflatten(1, (-1, 8 // bits))
    packed = torch.zeros(places.shape[:2], dtype=torch.uint8, device=places.device)
    for place in range(8 // bits):
        packed |= places[..., place] << (bits * place)
    return packed


def reference_model(folder: Path, original: Path):
    """The float32 transformers model of `original` with the weights that an AWQ checkpoint stands for."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    model.load_state_dict(dequantized_state(folder))
    return model.eval()


@torch.no_grad()
def kl_and_agreement(original, other, tokens: torch.Tensor) -> tuple[float, float]:
    """Mean KL divergence (nats a token) of `other` from `original`, and the share of equal likeliest tokens."""
    a, b = (model(tokens).logits.double().log_softmax(-1) for model in (original, other))
    return float((a.exp() * (a - b)).sum(-1).mean()), float((a.argmax(-1) == b.argmax(-1)).double().mean())
