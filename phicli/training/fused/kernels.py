"""What a training step computes element by element, as Triton kernels: each reads its operands once and writes once.

All compute in float32 and round once, to the dtype of what they write. Rows are tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 256  # of an eighth of what a program of `_drop` covers: a draw gives eight numbers
ROUNDS: tl.constexpr = tl.constexpr(7)  # of Philox: as few as pass the tests of its authors
WIDE = 1024  # columns of a program of the gated product
LOGITS = 8192  # of a row that a program holds at once


@triton.jit
def _normalize(x, weight, out, eps, OFFSET: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * WIDTH
    value = tl.load(x + start + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value) / WIDTH + eps)
    scale = tl.load(weight + at, mask=at < WIDTH, other=0.0).to(tl.float32) + OFFSET
    tl.store(out + start + at, (value * scale).to(out.dtype.element_ty), mask=at < WIDTH)


@triton.jit
def _normalize_back(x, weight, gradient, out, eps, OFFSET: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * WIDTH
    value = tl.load(x + start + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value) / WIDTH + eps)
    value *= inverse
    scaled = tl.load(gradient + start + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + at, mask=at < WIDTH, other=0.0).to(tl.float32) + OFFSET
    result = inverse * (scaled - value * tl.sum(scaled * value) / WIDTH)
    tl.store(out + start + at, result.to(out.dtype.element_ty), mask=at < WIDTH)


def normalize(x: Tensor, weight: Tensor, eps: float, offset: int, gradient: Tensor | None = None) -> Tensor:
    """x / rms(x) * (weight + offset) (Zhang and Sennrich, 2019, arXiv:1910.07467), or the gradient by x.

    Args:
        x, gradient (by the result): (rows, width), contiguous. weight: (width). offset: 1 in Gemma's norms, else 0.

    Returns:
        as x.
    """
    rows, width = x.shape
    out, block = torch.empty_like(x), triton.next_power_of_2(width)
    sizes = {"OFFSET": offset, "WIDTH": width, "BLOCK": block, "num_warps": max(1, min(16, block // 256))}
    if gradient is None:
        _normalize[(rows,)](x, weight, out, eps, **sizes)
    else:
        _normalize_back[(rows,)](x, weight, gradient, out, eps, **sizes)
    return out


@triton.jit
def _opened(x, GELU: tl.constexpr):
    """x * sigmoid(z(x)), and its slope."""
    z, slope = x, x * 0.0 + 1.0
    if GELU:  # by tanh (Hendrycks and Gimpel, 2016, arXiv:1606.08415), as (1 + tanh(z / 2)) / 2 = sigmoid(z)
        z = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    share = tl.sigmoid(z)
    return x * share, share + x * share * (1.0 - share) * slope


@triton.jit
def _gate(gate, up, out, stride, GELU: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    opened, _ = _opened(tl.load(gate + row * stride + at, mask=at < WIDTH, other=0.0).to(tl.float32), GELU)
    value = tl.load(up + row * stride + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + at, (opened * value).to(out.dtype.element_ty), mask=at < WIDTH)


@triton.jit
def _gate_back(gate, up, gradient, by_gate, by_up, stride, GELU: tl.constexpr, WIDTH: tl.constexpr,
               BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    opened, slope = _opened(tl.load(gate + row * stride + at, mask=at < WIDTH, other=0.0).to(tl.float32), GELU)
    value = tl.load(up + row * stride + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    outer = tl.load(gradient + row * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    tl.store(by_gate + row * stride + at, (outer * value * slope).to(by_gate.dtype.element_ty), mask=at < WIDTH)
    tl.store(by_up + row * stride + at, (outer * opened).to(by_up.dtype.element_ty), mask=at < WIDTH)


def gated(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    """silu(gate) * up, or gelu(gate) * up (SwiGLU and GEGLU; Shazeer, 2020, arXiv:2002.05202).

    Args:
        gate, up: (rows, width), rows of the same stride, columns side by side.

    Returns:
        (rows, width), contiguous.
    """
    rows, width = gate.shape
    out = torch.empty(rows, width, dtype=gate.dtype, device=gate.device)
    _gate[(rows, triton.cdiv(width, WIDE))](gate, up, out, gate.stride(0), GELU=gelu, WIDTH=width, BLOCK=WIDE)
    return out


def gated_back(gate: Tensor, up: Tensor, gelu: bool, gradient: Tensor, by_gate: Tensor, by_up: Tensor) -> None:
    """Write the gradients by gate and by up, which have the strides of both; gradient: contiguous."""
    rows, width = gate.shape
    _gate_back[(rows, triton.cdiv(width, WIDE))](gate, up, gradient, by_gate, by_up, gate.stride(0), GELU=gelu,
                                                 WIDTH=width, BLOCK=WIDE)


@triton.jit
def _some_dropped(x, out, at, inside, number, threshold, scale, ADD: tl.constexpr):
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.where((number & 0xFFFF) >= threshold, value * scale, 0.0)
    if ADD:
        value += tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["salt", "threshold"])
def _drop(x, out, seed, salt, threshold, scale, WIDTH: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row, draw = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    zero = draw * 0
    numbers = tl.philox(tl.load(seed), draw, zero + row, zero + salt, zero, n_rounds=ROUNDS)
    at = tl.program_id(1) * 8 * BLOCK + tl.arange(0, BLOCK)
    x += row.to(tl.int64) * WIDTH
    out += row.to(tl.int64) * WIDTH
    for i in tl.static_range(4):
        _some_dropped(x, out, at, at < WIDTH, numbers[i], threshold, scale, ADD)
        _some_dropped(x, out, at + BLOCK, at + BLOCK < WIDTH, numbers[i] >> 16, threshold, scale, ADD)
        at += 2 * BLOCK


def dropped(x: Tensor, seed: Tensor, salt: int, p: float, to: Tensor | None = None) -> Tensor:
    """x with a share p of its elements zero and the others divided by 1 - p: the same ones for the same seed and salt.

    So no mask is kept for the backward pass, which is the same function. Philox4x32-7 (Salmon et al., 2011) draws the
    numbers, 16 bits of which decide, counted by column, row and salt.

    Args:
        x: (rows, width), contiguous. seed: int64 (1), on its device. to: what the result is added to, in place.

    Returns:
        as x; or `to`.
    """
    rows, width = x.shape
    out = torch.empty_like(x) if to is None else to
    _drop[(rows, triton.cdiv(width, 8 * COLUMNS))](x, out, seed, salt, round(p * 65536), 1 / (1 - p), WIDTH=width,
                                                   ADD=to is not None, BLOCK=COLUMNS)
    return out


@triton.jit(do_not_specialize=["length", "of_batch", "of_head", "of_token", "of_angles"])
def _rotate(x, cos, sin, out, length, sign, of_batch, of_head, of_token, of_angles, HEADS: tl.constexpr,
            BLOCK: tl.constexpr, WIDTH: tl.constexpr, ROTATED: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr):
    row = tl.program_id(0)
    batch, token = row // length, row % length
    head = tl.arange(0, BLOCK)[:, None]
    at = tl.arange(0, HALF)[None, :]
    inside = (head < HEADS) & (at < ROTATED // 2)
    x += batch.to(tl.int64) * of_batch + token * of_token + head * of_head
    out += (row.to(tl.int64) * HEADS + head) * WIDTH
    angle = batch * of_angles + token * ROTATED + at
    cosine = tl.load(cos + angle, mask=at < ROTATED // 2, other=0.0).to(tl.float32)
    sine = tl.load(sin + angle, mask=at < ROTATED // 2, other=0.0).to(tl.float32) * sign
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + ROTATED // 2 + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (first * cosine - second * sine).to(out.dtype.element_ty), mask=inside)
    tl.store(out + ROTATED // 2 + at, (second * cosine + first * sine).to(out.dtype.element_ty), mask=inside)
    if REST:
        at = ROTATED + tl.arange(0, REST)[None, :]
        inside = (head < HEADS) & (at < WIDTH)
        tl.store(out + at, tl.load(x + at, mask=inside, other=0.0), mask=inside)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Rotary embeddings (Su et al., 2021, arXiv:2104.09864), first half and second half of a head as pairs.

    Args:
        x: (batch, heads, length, width), a head's elements side by side. cos, sin: (batch or 1, length, rotated),
            contiguous; both halves are the same; what lies beyond is left as it is. back: the other way round, which
            gives the gradient.

    Returns:
        as x, in memory (batch, length, heads, width).
    """
    batch, heads, length, width = x.shape
    out = torch.empty(batch, length, heads, width, dtype=x.dtype, device=x.device)
    turned = cos.shape[-1]
    _rotate[(batch * length,)](
        x, cos, sin, out, length, -1.0 if back else 1.0, x.stride(0), x.stride(1), x.stride(2),
        length * turned if cos.shape[0] > 1 else 0, HEADS=heads, BLOCK=triton.next_power_of_2(heads), WIDTH=width,
        ROTATED=turned, HALF=triton.next_power_of_2(turned // 2),
        REST=triton.next_power_of_2(width - turned) if width > turned else 0)
    return out.transpose(1, 2)


@triton.jit
def _cross_entropy(logits, labels, losses, gradient, ignored, size, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    logits += row.to(tl.int64) * size
    label = tl.load(labels + row)
    counts = label != ignored
    chosen = tl.load(logits + tl.where(counts, label, 0)).to(tl.float32)  # before any gradient may lie in its place
    at = tl.arange(0, BLOCK)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        value = tl.load(logits + start + at, mask=start + at < size, other=float("-inf")).to(tl.float32)
        above = tl.maximum(highest, value)
        known = above != float("-inf")
        total = tl.where(known, total * tl.exp(highest - above) + tl.exp(value - above), 0.0)
        highest = above
    top = tl.max(highest)
    log_sum = top + tl.log(tl.sum(tl.where(highest != float("-inf"), total * tl.exp(highest - top), 0.0)))
    tl.store(losses + row, tl.where(counts, log_sum - chosen, 0.0))
    if GRADIENT:
        gradient += row.to(tl.int64) * size
        for start in range(0, size, BLOCK):
            value = tl.load(logits + start + at, mask=start + at < size, other=float("-inf")).to(tl.float32)
            slope = tl.exp(value - log_sum) - tl.where(start + at == label, 1.0, 0.0)
            tl.store(gradient + start + at, tl.where(counts, slope, 0.0).to(gradient.dtype.element_ty),
                     mask=start + at < size)


def cross_entropy(logits: Tensor, labels: Tensor, ignored: int, gradient: Tensor | None = None) -> Tensor:
    """The loss of each row; its gradient by the logits is written to `gradient`, which may be the logits themselves.

    Args:
        logits, gradient: (rows, size), contiguous. labels: int64 (rows). ignored: a label that counts nothing.

    Returns:
        float32 (rows).
    """
    rows, size = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = min(LOGITS, triton.next_power_of_2(size))
    _cross_entropy[(rows,)](logits, labels, losses, logits if gradient is None else gradient, ignored, size,
                            GRADIENT=gradient is not None, BLOCK=block, num_warps=max(1, min(16, block // 512)))
    return losses
