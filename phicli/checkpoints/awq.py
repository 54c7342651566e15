"""AWQ's "gemm" layout of a quantized linear: eight 4-bit integers in an int32, inputs along the first axis."""

import torch
from torch import Tensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output column that each 4-bit place of an int32 holds, from the lowest
BITS, PER_WORD = 4, 8
LOW = 0x0F0F0F0F  # every other 4-bit place of an int32


def pack_columns(integers: Tensor) -> Tensor:
    """Pack (rows, columns) whole numbers in [0, 15] into int32 (rows, columns / 8)."""
    places = integers.to(torch.int32).unflatten(-1, (-1, PER_WORD))
    words = torch.zeros(places.shape[:-1], dtype=torch.int32, device=integers.device)
    for place, column in enumerate(ORDER):
        words |= places[..., column] << (BITS * place)
    return words


def low_first(words: Tensor) -> Tensor:
    """int32 (rows, columns / 8) as packed here, to uint8 (columns, rows / 2 rounded up), the first row in the low bits.

    That is the order of MatMulNBits, of Olive's checkpoints and of `int4.unpack`.

    Two rows' words give two words that hold a byte per column each; these are transposed whole, and their bytes sorted
    into columns last: torch transposes words ten times as fast as bytes.
    """
    if len(words) % 2:
        words = torch.cat([words, torch.zeros_like(words[:1])])
    first, second = words[0::2], words[1::2]
    columns = torch.empty((words.shape[1], PER_WORD, len(first)), dtype=torch.uint8, device=words.device)
    lower, upper = (first & LOW) | ((second & LOW) << 4), ((first >> 4) & LOW) | (second & ~LOW)
    for places, pairs in ((ORDER[0::2], lower), (ORDER[1::2], upper)):
        octets = pairs.t().clone(memory_format=torch.contiguous_format).view(torch.uint8).unflatten(1, (-1, 4))
        for octet, column in enumerate(places):
            columns[:, column] = octets[..., octet]
    return columns.flatten(0, 1)


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
