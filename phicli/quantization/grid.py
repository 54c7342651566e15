"""The integer grid of a quantized weight: w ≈ (q - zero) * scale, one scale and zero per group of inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[Tensor, Tensor, Tensor]  # integers float32 (out, in), scale and zero point float32 (out, groups)


@dataclass(frozen=True)
class GridShape:
    """How weights are quantized.

    bits: of an integer. group_size: consecutive inputs that share a scale. symmetric: zero point fixed in the middle.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False

    @property
    def top(self) -> int:
        """The largest integer; the smallest is 0."""
        return 2**self.bits - 1

    def groups(self, weight: Tensor) -> Tensor:
        """(out, in) seen as (out, groups, group_size)."""
        return weight.unflatten(-1, (-1, self.group_size))


def fit_grid(low: Tensor, high: Tensor, shape: GridShape) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover [low, high] and hold 0 exactly.

    Args:
        low, high: float32, any shape (one entry per group).

    Returns:
        scale: float32, rounded to what float16 (the checkpoint's dtype) holds. zero: float32 whole numbers in [0, top].
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if shape.symmetric:
        middle = 2 ** (shape.bits - 1)
        scale = torch.maximum(high / (middle - 1), -low / middle)
    else:
        scale = (high - low) / shape.top
    scale = scale.clamp(min=1e-5).half().float()
    zero = torch.full_like(scale, middle) if shape.symmetric else (-low / scale).round_().clamp_(0, shape.top)
    return scale, zero


def to_integers(weight: Tensor, scale: Tensor, zero: Tensor, shape: GridShape) -> Tensor:
    """Nearest integers of (out, in) weights on a grid of (out, groups) scales and zeros; float32 (out, in)."""
    grouped = shape.groups(weight) / scale.unsqueeze(-1)
    return grouped.round_().add_(zero.unsqueeze(-1)).clamp_(0, shape.top).flatten(-2)


def to_weights(integers: Tensor, scale: Tensor, zero: Tensor, shape: GridShape) -> Tensor:
    """The weights (out, in) that the integers stand for."""
    return ((shape.groups(integers) - zero.unsqueeze(-1)) * scale.unsqueeze(-1)).flatten(-2)


def round_to_grid(weight: Tensor, shape: GridShape, shrink: float = 1.0) -> Tensor:
    """Round (out, in) weights to the grid of their own range, shrunk by a factor, and back."""
    low, high = shape.groups(weight).aminmax(dim=-1)
    scale, zero = fit_grid(low * shrink, high * shrink, shape)
    return to_weights(to_integers(weight, scale, zero, shape), scale, zero, shape)
