"""`int4.dequantize` for 4 bits as one Triton kernel: the packed bytes are read once and the weight written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BYTES = 1024  # of a program, in whole groups


@triton.jit
def _kernel(packed, scales, zeros, weight, groups, GROUPS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * groups
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    scale = tl.load(scales + row + group, mask=group < groups, other=0.0).to(tl.float32)[:, None]
    zero = tl.load(zeros + row + group, mask=group < groups, other=0).to(tl.float32)[:, None]
    at, both = tl.arange(0, BLOCK)[None, :], tl.arange(0, 2 * BLOCK)[None, :]
    group = group[:, None]
    pair = tl.load(packed + (row + group) * SIZE + at, mask=(group < groups) & (at < SIZE), other=0)
    low = ((pair & 15).to(tl.float32) - zero) * scale
    high = ((pair >> 4).to(tl.float32) - zero) * scale
    tl.store(weight + (row + group) * 2 * SIZE + both, tl.interleave(low, high).to(weight.dtype.element_ty),
             mask=(group < groups) & (both < 2 * SIZE))


def dequantize_4_bits(packed: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype) -> Tensor:
    """As `int4.dequantize` with bits=4, for contiguous CUDA tensors."""
    rows, width = packed.shape
    groups = scales.shape[1]
    size = width // groups
    block = triton.next_power_of_2(size)
    of_program = max(1, min(BYTES // block, triton.next_power_of_2(groups)))
    weight = torch.empty(rows, 2 * width, dtype=dtype, device=packed.device)
    _kernel[(rows, triton.cdiv(groups, of_program))](packed, scales, zeros, weight, groups, GROUPS=of_program,
                                                     SIZE=size, BLOCK=block)
    return weight
