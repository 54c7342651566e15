"""The parts of a quantized model that learn: integers and scales of its linears, weights of its norms."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phicli.checkpoints.awq import pack_linear
from phicli.checkpoints.int4 import Int4Linear, unpack

OFFSET_STEP = 4e-4  # of an integer, at most, in a step of training
STRETCH_STEP = 2e-4  # of a scale, or of a norm's weight
BETAS = 0.9, 0.99  # of the momentum
EDGE = 0.49  # how far a number may be from the integer that it is rounded to, at the start
FRACTION = 15  # bits; offsets lie in an int16, which holds steps that float16 would lose


class TrainableLinear(nn.Module):
    """w = (round(q + offset) - zero) * scale * (1 + stretch), with offset and stretch trained.

    Rounding passes gradients on as if it were not there (the straight-through estimator, Bengio et al., 2013,
    arXiv:1308.3432). Steps are made within the backward pass (LOMO, Lv et al., 2023, arXiv:2306.09782), so that no
    gradient of a weight outlives its linear.
    """

    def __init__(self, linear: Int4Linear, weight: Tensor):
        """weight: what was rounded, (out, in); numbers that rounding moved further start at the edge of their cell."""
        super().__init__()
        self.linear, self.top = linear, 2**linear.bits - 1
        linear.dense = None  # the weight is another one from now on
        self.scales, self.zeros = linear.scales.float(), linear.qzeros.float()
        position = self._grouped(weight.float()) / self.scales.unsqueeze(-1) + self.zeros.unsqueeze(-1)
        offset = (position.flatten(1) - self._start()).clamp_(-EDGE, EDGE)
        self.offset = offset.mul_(1 << FRACTION).round_().to(torch.int16)
        self.momentum = torch.zeros_like(weight, dtype=linear.dtype)
        self.stretch = Stretch(self.scales)
        self.pace = 0.0  # share of the full steps that is made now

    def _start(self) -> Tensor:
        return unpack(self.linear.qweight, self.linear.bits)

    def _grouped(self, weight: Tensor) -> Tensor:
        return weight.unflatten(1, (self.scales.shape[1], -1))

    def integers(self) -> Tensor:
        """int32 (out, in), in [0, top]."""
        fixed = (self._start().int() << FRACTION).add_(self.offset).add_(1 << FRACTION - 1)
        return fixed.bitwise_right_shift_(FRACTION).clamp_(0, self.top)

    def scale(self) -> Tensor:
        """float32 (out, groups), rounded to what float16 holds."""
        return self.stretch.values().half().float()

    def weight(self, dtype: torch.dtype) -> Tensor:
        """(out, in)."""
        centred = self._grouped(self.integers()) - self.zeros.unsqueeze(-1)
        return centred.mul_(self.scale().unsqueeze(-1)).flatten(1).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _TrainedProduct.apply(x, self)

    def stored(self) -> dict[str, Tensor]:
        """The checkpoint's tensors, by what follows the module's name."""
        return {f".{kind}": tensor for kind, tensor in
                pack_linear(self.integers(), self.scale(), self.linear.qzeros).items()}

    def learn(self, weight: Tensor, gradient: Tensor) -> None:
        """Make a step against the gradient of the weight, both (out, in)."""
        self.stretch.learn((self._grouped(gradient) * self._grouped(weight)).sum(-1, dtype=torch.float32), self.pace)
        units = round(OFFSET_STEP * self.pace * (1 << FRACTION))
        limit = (1 << FRACTION) - 1
        moved = self.offset.int().sub_(direction(self.momentum, gradient).int(), alpha=units)
        self.offset = moved.clamp_(-limit, limit).to(torch.int16)


class TrainableNorm:
    """A norm's weight, which learns when its gradient is there."""

    def __init__(self, weight: nn.Parameter):
        self.weight, self.stretch, self.pace = weight, Stretch(weight.data), 0.0
        weight.requires_grad_(True)
        weight.register_post_accumulate_grad_hook(self._learn)

    def stored(self) -> dict[str, Tensor]:
        """As `TrainableLinear.stored`."""
        return {".weight": self.stretch.values().half()}

    def _learn(self, weight: Tensor) -> None:
        assert weight.grad is not None
        self.stretch.learn(weight.grad.float() * self.stretch.start, self.pace)
        weight.data, weight.grad = self.stretch.values().to(weight.dtype), None


class Stretch:
    """Numbers that are trained by a factor each, 1 + stretch."""

    def __init__(self, start: Tensor):
        self.start = start.float()
        self.stretch, self.momentum = torch.zeros_like(self.start), torch.zeros_like(self.start)

    def values(self) -> Tensor:
        """float32."""
        return self.start * (1 + self.stretch)

    def learn(self, gradient: Tensor, pace: float) -> None:
        """gradient: by the factors."""
        self.stretch.sub_(direction(self.momentum, gradient), alpha=STRETCH_STEP * pace)


def direction(momentum: Tensor, gradient: Tensor) -> Tensor:
    """The sign of Lion's step (Chen et al., 2023, arXiv:2302.06675, Algorithm 2), and its momentum carried on.

    All numbers move by one size, so one moment is kept, and a factor that a gradient always has does not matter.
    """
    gradient = gradient.to(momentum.dtype)
    sign = torch.lerp(gradient, momentum, BETAS[0]).sign_()
    momentum.lerp_(gradient, 1 - BETAS[1])
    return sign


class _TrainedProduct(torch.autograd.Function):
    """x @ W.T + bias with W made from integers and offsets, in forward and again in backward, where they learn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: TrainableLinear) -> Tensor:
        ctx.save_for_backward(x)
        ctx.linear = linear
        return F.linear(x, linear.weight(x.dtype), linear.linear.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (x,) = gradients, ctx.saved_tensors
        weight = ctx.linear.weight(x.dtype)
        before = gradient @ weight
        if ctx.linear.pace:
            ctx.linear.learn(weight, gradient.flatten(0, -2).t() @ x.flatten(0, -2))
        return before, None
