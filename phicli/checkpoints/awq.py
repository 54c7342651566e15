"""AWQ's "gemm" layout of a quantized linear: eight 4-bit integers in an int32, inputs along the first axis."""

import torch
from torch import Tensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output column that each 4-bit place of an int32 holds, from the lowest
BITS, PER_WORD = 4, 8


def pack_columns(integers: Tensor) -> Tensor:
    """Pack (rows, columns) whole numbers in [0, 15] into int32 (rows, columns / 8)."""
    places = integers.to(torch.int32).unflatten(-1, (-1, PER_WORD))
    words = torch.zeros(places.shape[:-1], dtype=torch.int32, device=integers.device)
    for place, column in enumerate(ORDER):
        words |= places[..., column] << (BITS * place)
    return words


def unpack_columns(words: Tensor) -> Tensor:
    """The inverse: int32 (rows, columns / 8) to int32 (rows, columns) in [0, 15]."""
    places = torch.empty((*words.shape, PER_WORD), dtype=torch.int32, device=words.device)
    for place, column in enumerate(ORDER):
        places[..., column] = (words >> (BITS * place)) & 15
    return places.flatten(-2)


def pack_linear(integers: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
    """The checkpoint's tensors of one linear.

    Args:
        integers: (out, in) whole numbers. scale, zero: (out, groups).

    Returns:
        qweight int32 (in, out / 8), qzeros int32 (groups, out / 8), scales float16 (groups, out).
    """
    return {
        "qweight": pack_columns(integers.t()),
        "qzeros": pack_columns(zero.t()),
        "scales": scale.t().half().contiguous(),
    }


def unpack_linear(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `pack_linear`: integers int32 (out, in), scale float32 (out, groups), zero int32 (out, groups)."""
    return unpack_columns(qweight).t(), scales.float().t(), unpack_columns(qzeros).t()


def quantization_config(group_size: int, skipped: list[str]) -> dict:
    """What config.json says about the checkpoint, for AutoAWQ, transformers and genai's builder."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": BITS,
        "group_size": group_size,
        "zero_point": True,
        "modules_to_not_convert": skipped or None,
    }
