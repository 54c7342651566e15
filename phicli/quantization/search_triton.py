"""The searches' inner loops as Triton kernels: a group of weights is read once and stays in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from phicli.quantization.grid import GridShape

ROWS = 32  # of a program


@triton.jit
def _fit(low, high, TOP: tl.constexpr, SYMMETRIC: tl.constexpr):
    """grid.fit_grid."""
    low, high = tl.minimum(low, 0.0), tl.maximum(high, 0.0)
    if SYMMETRIC:
        scale = tl.maximum(tl.div_rn(high, (TOP - 1) / 2.0), tl.div_rn(-low, (TOP + 1) / 2.0))
    else:
        scale = tl.div_rn(high - low, TOP * 1.0)
    scale = tl.maximum(scale, 1e-5).to(tl.float16).to(tl.float32)
    if SYMMETRIC:
        zero = tl.full(scale.shape, (TOP + 1) / 2.0, tl.float32)
    else:
        zero = tl.minimum(tl.maximum(_rint(tl.div_rn(-low, scale)), 0.0), TOP * 1.0)
    return scale, zero


@triton.jit
def _rint(x):
    """To the nearest whole number, halves to the even one, for |x| < 2^22: what adding and taking 1.5 * 2^23 does."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _on_grid(x, scale, zero, TOP: tl.constexpr):
    """grid.to_integers and grid.to_weights; far outside, where `_rint` is not exact, values are cut off anyway."""
    q = _rint(tl.minimum(tl.maximum(tl.div_rn(x, scale[:, None]), -1e6), 1e6)) + zero[:, None]
    q = tl.minimum(tl.maximum(q, 0.0), TOP * 1.0)
    return (q - zero[:, None]) * scale[:, None]


@triton.jit
def _scaled_kernel(weight, channel_scale, out, rows, width, TOP: tl.constexpr, SYMMETRIC: tl.constexpr,
                   GROUP: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    place, inside = row[:, None] * width + column[None, :], (row < rows)[:, None]
    w = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(channel_scale + column)[None, :]
    x = w * s
    scale, zero = _fit(tl.min(x, axis=1), tl.max(x, axis=1), TOP, SYMMETRIC)
    d = tl.div_rn(_on_grid(x, scale, zero, TOP), s) - w
    tl.store(out + place, d.to(out.dtype.element_ty), mask=inside)


def scaled_difference(weight: Tensor, channel_scale: Tensor, shape: GridShape) -> Tensor:
    """round_to_grid(weight * scale) / scale - weight, bfloat16 (out, in), for contiguous CUDA tensors."""
    rows, width = weight.shape
    out = torch.empty(rows, width, dtype=torch.bfloat16, device=weight.device)
    _scaled_kernel[(triton.cdiv(rows, ROWS), width // shape.group_size)](
        weight, channel_scale.contiguous(), out, rows, width, TOP=shape.top, SYMMETRIC=shape.symmetric,
        GROUP=shape.group_size, ROWS=ROWS, num_warps=4)
    return out


@triton.jit
def _clip_kernel(weight, gram, best_scale, best_zero, rows, width, STEPS: tl.constexpr, PART: tl.constexpr,
                 TOP: tl.constexpr, SYMMETRIC: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    inner = tl.arange(0, GROUP)
    column = group * GROUP + inner
    place, inside = row[:, None] * width + column[None, :], row < rows
    w = tl.load(weight + place, mask=inside[:, None], other=0.0).to(tl.float32)
    block = tl.load(gram + column[:, None].to(tl.int64) * width + column[None, :])
    low, high = tl.min(w, axis=1), tl.max(w, axis=1)
    least = tl.full((ROWS,), float("inf"), tl.float32)
    scale_kept, zero_kept = _fit(low, high, TOP, SYMMETRIC)
    for step in range(STEPS):
        factor = 1.0 - step * PART
        scale, zero = _fit(low * factor, high * factor, TOP, SYMMETRIC)
        d = _on_grid(w, scale, zero, TOP) - w
        error = tl.sum(tl.dot(d, block, input_precision="tf32") * d, axis=1)
        better = error < least
        least = tl.where(better, error, least)
        scale_kept, zero_kept = tl.where(better, scale, scale_kept), tl.where(better, zero, zero_kept)
    target = row * (width // GROUP) + group
    tl.store(best_scale + target, scale_kept, mask=inside)
    tl.store(best_zero + target, zero_kept, mask=inside)


def clipped_grid(weight: Tensor, gram: Tensor, shape: GridShape, steps: int, part: float) -> tuple[Tensor, Tensor]:
    """As `search.search_clip`, ranges shrunk by 1 - k * part, k < steps; contiguous CUDA tensors."""
    rows, width = weight.shape
    groups = width // shape.group_size
    scale = torch.empty(rows, groups, device=weight.device)
    zero = torch.empty_like(scale)
    _clip_kernel[(triton.cdiv(rows, ROWS), groups)](
        weight, gram.contiguous(), scale, zero, rows, width, STEPS=steps, PART=part, TOP=shape.top,
        SYMMETRIC=shape.symmetric, GROUP=shape.group_size, ROWS=ROWS, num_warps=4)
    return scale, zero
