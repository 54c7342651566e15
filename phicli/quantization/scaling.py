"""AWQ's scales put into a layer: a producer's channels are divided, the inputs of its consumers multiplied."""

from typing import Any

import torch
from torch import Tensor, nn

from phicli.architectures import Scaling


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
