"""Which weights may share AWQ's scales, per architecture, as data.

A scaling divides the channels that a producer puts out and multiplies the inputs of its consumers, so that the layer
computes the same function. That holds where nothing nonlinear and no residual stands between them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Scaling:
    """One place to scale.

    producer: module in a decoder layer whose output channels are divided.
    consumers: linears that read them, and nothing else does.
    kind: how an input channel of the consumers maps to a parameter of the producer, see `channels`.
    """

    producer: str
    consumers: tuple[str, ...]
    kind: str = "norm"


PHI3 = (
    Scaling("input_layernorm", ("self_attn.qkv_proj",)),
    Scaling("self_attn.qkv_proj", ("self_attn.o_proj",), "value_of_qkv"),
    Scaling("post_attention_layernorm", ("mlp.gate_up_proj",)),
    Scaling("mlp.gate_up_proj", ("mlp.down_proj",), "up_of_gate_up"),
)
LLAMA = (
    Scaling("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Scaling("self_attn.v_proj", ("self_attn.o_proj",), "value"),
    Scaling("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Scaling("mlp.up_proj", ("mlp.down_proj",), "linear"),
)


def _gemma(norm_before_mlp: str) -> tuple[Scaling, ...]:
    """Gemma's norms multiply by 1 + weight, and Gemma 2 and 3 have a second norm before each residual."""
    return (
        Scaling("input_layernorm", LLAMA[0].consumers, "norm_plus_one"),
        LLAMA[1],
        Scaling(norm_before_mlp, LLAMA[2].consumers, "norm_plus_one"),
        LLAMA[3],
    )


ARCHITECTURES: dict[str, tuple[Scaling, ...]] = {
    "phi3": PHI3,  # Phi-3, Phi-3.5, Phi-4-mini
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": _gemma("post_attention_layernorm"),
    "gemma2": _gemma("pre_feedforward_layernorm"),
    "gemma3_text": _gemma("pre_feedforward_layernorm"),
}


def channels(scaling: Scaling, layer: nn.Module, config: Any) -> Tensor:
    """For each input channel of the consumers, the row of the producer's weight that it comes from; int64 (in,).

    With grouped-query attention several input channels of `o_proj` come from one value channel.
    """
    consumer: Any = layer.get_submodule(scaling.consumers[0])
    width: int = consumer.in_features
    index = torch.arange(width)
    if scaling.kind in ("norm", "norm_plus_one", "linear"):
        return index
    if scaling.kind == "up_of_gate_up":
        return index + width
    heads = config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    head = width // heads  # of o_proj's input, so right also where heads * head is not the hidden size
    value = (index // head) // (heads // key_value_heads) * head + index % head
    before = width + key_value_heads * head if scaling.kind == "value_of_qkv" else 0  # queries and keys come first
    return value + before


@torch.no_grad()
def apply_scale(scaling: Scaling, layer: nn.Module, scale: Tensor, rows: Tensor) -> None:
    """Multiply the consumers' inputs by `scale` (float32 (in,)) and divide the producer's channels, in place.

    `rows` is what `channels` gave; channels of one row must have one scale.
    """
    for name in scaling.consumers:
        weight: Any = layer.get_submodule(name).weight
        weight.data = (weight.float() * scale).to(weight.dtype)
    producer: Any = layer.get_submodule(scaling.producer)
    factor = torch.ones(producer.weight.shape[0], device=scale.device)
    factor[rows] = 1 / scale
    weight = producer.weight
    if scaling.kind == "norm_plus_one":
        weight.data = ((weight.float() + 1) * factor - 1).to(weight.dtype)
    elif weight.dim() == 1:
        weight.data = (weight.float() * factor).to(weight.dtype)
    else:
        weight.data = (weight.float() * factor[:, None]).to(weight.dtype)
    bias = getattr(producer, "bias", None)
    if bias is not None:
        bias.data = (bias.float() * factor).to(bias.dtype)
