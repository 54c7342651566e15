"""GPTQ's rounding of one block of columns as one Triton kernel: a program keeps its rows in registers throughout."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, WARPS = 8, 1  # of a program: within a warp a column is found without waiting for others


@triton.jit
def _kernel(weight, upper, scale, zero, group_of, errors, rows, width, inner, groups, top, BLOCK: tl.constexpr,
            ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    place = row[:, None].to(tl.int64) * width + column[None, :]
    inside = row < rows
    rest = tl.load(weight + place, mask=inside[:, None], other=0.0)
    all_q = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    all_error = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for c in range(BLOCK):
        group = row * groups + tl.load(group_of + c).to(tl.int32)
        s = tl.load(scale + group, mask=inside, other=1.0)
        z = tl.load(zero + group, mask=inside, other=0.0)
        line = tl.load(upper + c * inner + column)
        pivot = tl.load(upper + c * inner + c)
        here = (column == c)[None, :]
        w = tl.sum(tl.where(here, rest, 0.0), axis=1)
        q = tl.extra.libdevice.rint(w / s) + z
        q = tl.minimum(tl.maximum(q, 0.0), top)
        error = (w - (q - z) * s) / pivot
        rest -= tl.where((column > c)[None, :], error[:, None] * line[None, :], 0.0)
        all_q = tl.where(here, q[:, None], all_q)
        all_error = tl.where(here, error[:, None], all_error)
    tl.store(weight + place, all_q, mask=inside[:, None])
    tl.store(errors + row[:, None] * BLOCK + column[None, :], all_error, mask=inside[:, None])


def round_block(weight: Tensor, upper: Tensor, scale: Tensor, zero: Tensor, groups: Tensor, top: int) -> Tensor:
    """As `rounding.round_block_plain`, for float32 CUDA tensors; the block's width must be a power of two."""
    rows, block = weight.shape
    if block & (block - 1):
        from phicli.quantization.rounding import round_block_plain

        return round_block_plain(weight, upper, scale, zero, groups, top)
    errors = torch.empty(rows, block, device=weight.device)
    _kernel[(triton.cdiv(rows, ROWS),)](
        weight, upper, scale.contiguous(), zero.contiguous(), groups, errors, rows, weight.stride(0), upper.stride(0),
        scale.shape[1], float(top), BLOCK=block, ROWS=ROWS, num_warps=WARPS)
    return errors
