"""`int4.dequantize` for 4 bits as one Triton kernel: the packed bytes are read once and the weight written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BYTES = 1024  # of a program


@triton.jit
def _kernel(packed, scales, zeros, weight, width, groups, group_bytes, BYTES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    inside = column < width
    pair = tl.load(packed + row * width + column, mask=inside, other=0)
    group = row * groups + column // group_bytes
    scale = tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
    zero = tl.load(zeros + group, mask=inside, other=0).to(tl.float32)
    low = ((pair & 15).to(tl.float32) - zero) * scale
    high = ((pair >> 4).to(tl.float32) - zero) * scale
    both = tl.program_id(1) * 2 * BYTES + tl.arange(0, 2 * BYTES)
    tl.store(weight + row * 2 * width + both, tl.interleave(low, high).to(weight.dtype.element_ty),
             mask=both < 2 * width)


def dequantize_4_bits(packed: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype) -> Tensor:
    """As `int4.dequantize` with bits=4, for contiguous CUDA tensors."""
    rows, width = packed.shape
    groups = scales.shape[1]
    weight = torch.empty(rows, 2 * width, dtype=dtype, device=packed.device)
    _kernel[(rows, triton.cdiv(width, BYTES))](packed, scales, zeros, weight, width, groups, width // groups,
                                               BYTES=BYTES)
    return weight
