"""What a layer is made of, as autograd functions that keep little.

Between forward and backward pass a layer keeps what its matrix products and its attention need and no kernel makes
again: the residual stream before each norm, queries, keys, values, the attention's result, gate and up. What comes
out of a norm or of a gated product is made a second time where a product needs it (`Remade`), and masks of dropout are
drawn a second time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from phicli.training.fused import kernels


class Remade(NamedTuple):
    """How a tensor is made from others, which are kept anyway: (rows, width) from these."""

    make: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]


class Norm(torch.autograd.Function):
    """x / rms(x) * (weight + offset); see `kernels.normalize`. The weight gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.offset = eps, offset
        return kernels.normalize(_rows(x), weight, eps, offset).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x = kernels.normalize(_rows(x), weight, ctx.eps, ctx.offset, _rows(gradients[0]))
        return by_x.view(x.shape), None, None, None


class Gated(torch.autograd.Function):
    """silu(gate) * up, or gelu(gate) * up, of (…, width) each, or of one tensor (…, 2 * width), both side by side."""

    @staticmethod
    def forward(ctx: Any, gelu: bool, gate: Tensor, up: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.gelu = gelu
        made = gated(gelu, gate, up)
        return made.view(*gate.shape[:-1], made.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        by_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
        by_up = None if up is None else torch.empty_like(by_gate)
        kernels.gated_back(*_both(gate, up), ctx.gelu, _rows(gradients[0]), *_both(by_gate, by_up))
        return None, by_gate, by_up


def gated(gelu: bool, gate: Tensor, up: Tensor | None = None) -> Tensor:
    """As `Gated`, without gradients: (rows, width)."""
    return kernels.gated(*_both(gate, up), gelu)


def _both(gate: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor]:
    if up is None:
        first, second = _rows(gate).chunk(2, dim=1)
        return first, second
    return _rows(gate), _rows(up)


class Rotary(torch.autograd.Function):
    """Rotary embeddings; see `kernels.rotated`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return kernels.rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        if gradient.stride(-1) != 1:
            gradient = gradient.contiguous()
        cos, sin = ctx.saved_tensors
        return kernels.rotated(gradient, cos, sin, back=True), None, None


class Adapter(NamedTuple):
    """A LoRA adapter of one linear, as a step uses it.

    half_a: (r, in), half_b: (out, r), both in the dtype of computation, of what the parameters are now. seed: int64
    (1). salt: the linear's number. p: of dropout, 0 where there is none.
    """

    half_a: Tensor
    half_b: Tensor
    scaling: float
    seed: Tensor
    salt: int
    p: float

    def dropped(self, x: Tensor) -> Tensor:
        return kernels.dropped(x, self.seed, self.salt, self.p) if self.p else x


class Product(torch.autograd.Function):
    """x W^T + bias + scaling * dropout(x) A^T B^T (LoRA; Hu et al., 2021, arXiv:2106.09685) in one function.

    A (r, in) and B (out, r) in float32 are what gets gradients, which are made in float32; W and bias get none. W
    (out, in) is asked for when it is used, so that packed integers are unpacked twice and held between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, adapter: Adapter, base: Any, remade: Remade | None
                ) -> Tensor:
        rows = _rows(x)
        low = _scaled_product(adapter.dropped(rows), adapter.half_a.t(), adapter.scaling)
        ctx.adapter, ctx.base, ctx.make = adapter, base, remade.make if remade else _rows
        ctx.save_for_backward(low, *(remade.tensors if remade else (x,)))
        result = F.linear(rows, base.weight, base.bias)
        result.addmm_(low, adapter.half_b.t())
        return result.view(*x.shape[:-1], result.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, *kept = ctx.saved_tensors
        adapter, outer = ctx.adapter, _rows(gradients[0])
        by_low = _scaled_product(outer, adapter.half_b, adapter.scaling)
        by_b = _float_product(outer.t(), low)
        by_a = _float_product(by_low.t(), adapter.dropped(ctx.make(*kept)))
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = outer @ ctx.base.weight
            if adapter.p:
                kernels.dropped(by_low @ adapter.half_a, adapter.seed, adapter.salt, adapter.p, to=by_x)
            else:
                by_x.addmm_(by_low, adapter.half_a)
            by_x = by_x.view(*gradients[0].shape[:-1], by_x.shape[-1])
        return by_x, by_a, by_b, None, None, None


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale * left @ right, scaled before it is rounded."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)


def _float_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, of tensors in less."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _rows(x: Tensor) -> Tensor:
    """(…, width) as contiguous (rows, width)."""
    return x.reshape(-1, x.shape[-1]).contiguous()
