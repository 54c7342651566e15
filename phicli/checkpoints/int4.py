"""A frozen linear whose weight stays packed integers, and that gradients pass through.

QLoRA's idea (Dettmers et al., 2023, arXiv:2305.14314): the base is never unpacked as a whole; each linear makes its
weight when it is used, and again in the backward pass, so that only the packed tensors are held between the two.
"""

import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HELD = torch.float8_e4m3fn  # what bytes are called as parameters, see `hold_as_parameters`


def dequantize(packed: Tensor, scales: Tensor, zeros: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The weight (q - zero) * scale, computed in float32 and rounded once.

    Args:
        packed: uint8 (out, in * bits / 8), the first input in the lowest bits.
        scales: floating (out, groups). zeros: uint8 (out, groups). A group is in / groups inputs side by side.
        bits: 2, 4 or 8.

    Returns:
        dtype (out, in).
    """
    if packed.dtype == HELD:
        packed, zeros = packed.view(torch.uint8), zeros.view(torch.uint8)
    if bits == 4 and packed.is_cuda and (kernel := fused_kernel()):
        return kernel(packed, scales, zeros, dtype)
    integers = unpack(packed, bits).unflatten(1, (scales.shape[1], -1))
    weight = (integers.float() - zeros.float().unsqueeze(2)) * scales.float().unsqueeze(2)
    return weight.flatten(1).to(dtype)


@cache
def fused_kernel() -> Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor] | None:
    """The Triton kernel for 4 bits, or None where Triton cannot be had or cannot build: it wants a C compiler."""
    try:
        from phicli.checkpoints.int4_triton import dequantize_4_bits

        byte = torch.zeros(1, 1, dtype=torch.uint8, device="cuda")
        dequantize_4_bits(byte, byte.half(), byte, torch.bfloat16)
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError):
        return None
    return dequantize_4_bits


def unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 (rows, n) to uint8 (rows, n * 8 / bits); the lowest bits come first."""
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    return torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=2).flatten(1)


class _PackedProduct(torch.autograd.Function):
    """x @ W.T + bias with W made from the packed tensors, in forward and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor, bias: Any, bits: int) -> Tensor:
        ctx.save_for_backward(packed, scales, zeros)
        ctx.bits = bits
        return F.linear(x, dequantize(packed, scales, zeros, bits, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        packed, scales, zeros = ctx.saved_tensors
        return gradient @ dequantize(packed, scales, zeros, ctx.bits, gradient.dtype), None, None, None, None, None


class Int4Linear(nn.Linear):
    """A linear with packed weight, 4 bits as a rule (2 and 8 work too); peft wraps it like any linear.

    Buffers as in the checkpoint until `settle`, after it: qweight, scales, qzeros as in `dequantize`, bias (out) or
    None. `keep_dense` also keeps the weight in the dtype of computation, for speed.
    """

    qweight: Tensor
    scales: Tensor
    qzeros: Tensor

    def __init__(self, in_features: int, out_features: int, stored: dict[str, Tensor], dtype: torch.dtype):
        """stored: tensors with the shapes and dtypes of the checkpoint's, under its names. dtype: of computation."""
        nn.Module.__init__(self)  # a Linear without its weight
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.bits = 0  # until `settle`
        for name in ("qweight", "scales", "qzeros", "bias"):
            self.register_buffer(name, stored.get(name))
        self.register_buffer("dense", None, persistent=False)

    def settle(self, qweight: Tensor, scales: Tensor, qzeros: Tensor, bits: int) -> None:
        """Take the tensors in the layout of `dequantize`, in place of those of the checkpoint."""
        self.qweight, self.scales, self.qzeros, self.bits = qweight, scales, qzeros, bits
        if self.bias is not None:
            self.bias = self.bias.to(self.dtype)  # type: ignore[assignment]

    def keep_dense(self) -> None:
        self.dense = self.weight

    def hold_as_parameters(self) -> None:
        """Let the packed tensors be parameters without gradients, as FSDP shares out parameters only.

        Bytes are called float8 for it: before torch 2.13 FSDP makes parameters only of what could have a gradient.
        """
        for name in ("qweight", "scales", "qzeros"):
            tensor = self._buffers.pop(name)
            assert tensor is not None  # after `settle`
            held = tensor if tensor.is_floating_point() else tensor.view(HELD)
            self.register_parameter(name, nn.Parameter(held, requires_grad=False))

    @property
    def weight(self) -> Tensor | None:  # type: ignore[override]
        """(out, in) in the dtype of computation, made at every access unless it is kept; None before `settle`."""
        if self.dense is not None or not self.bits:
            return self.dense
        return dequantize(self.qweight, self.scales, self.qzeros, self.bits, self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        if self.dense is not None:
            return F.linear(input, self.dense, self.bias)
        return _PackedProduct.apply(input, self.qweight, self.scales, self.qzeros, self.bias, self.bits)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, kept dense={self.dense is not None}"
