"""What AWQ searches for: scales of input channels, and clipped ranges of weight groups.

Both minimise the output error of a linear layer, ||(W' - W) X||^2 over the calibration inputs X (in, tokens). With
the Gram matrix G = X X^T / tokens that error is trace(D G D^T) for D = W' - W, so one pass over the tokens serves
every candidate.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from phicli.hardware.ranks import Ranks
from phicli.quantization.gram import panels
from phicli.quantization.grid import GridShape, fit_grid, round_to_grid, to_integers, to_weights
from phicli.quantization.kernels import kernels

SCALE_STEPS = 20  # AWQ's grid of exponents: 0, 1/20 … 19/20
CLIP_STEPS, SMALLEST_CLIP = 20, 0.5  # ranges shrunk by 1, 0.95 … 0.55


def output_error(difference: Tensor, gram: Tensor) -> Tensor:
    """Mean squared output error per row: diag(D G D^T), float32 (out,)."""
    return ((difference @ gram) * difference).sum(-1)


def search_scale(
    weight: Tensor, gram: Tensor, magnitude: Tensor, shape: GridShape, share: Tensor | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """AWQ's scale per input channel: s = x^a / w^(1 - a), the exponent a with the least output error.

    Equations 4 and 5 of arXiv:2306.00978, with the weight's magnitude in the denominator as AutoAWQ has it.

    Args:
        weight: float32 (out, in), all linears that read this input, stacked; on CUDA its own float dtype will do.
        gram: float32 (in, in), mean over tokens of x x^T.
        magnitude: float32 (in,), mean over tokens of |x|.
        share: int64 (in,), the producer's channel that each input channel is; channels that are the same one (of a
            value head that several query heads read) get the same scale. None: each its own.
        ranks: processes that share the exponents out; all get the first one's scale.

    Returns:
        float32 (in,), positive; weights are multiplied by it and inputs divided.
    """
    grouped = shape.groups(weight.abs().float())
    weight_size = (grouped / (grouped.amax(-1, keepdim=True) + 1e-6)).flatten(-2).mean(0)
    if share is not None:
        magnitude, weight_size = _shared(magnitude, share), _shared(weight_size, share)
    exponents = torch.arange(SCALE_STEPS, device=weight.device)[:, None] / SCALE_STEPS
    scales = magnitude.pow(exponents) / (weight_size.pow(1 - exponents) + 1e-4)
    scales = scales.clamp(min=1e-4)
    scales = scales / (scales.amax(1, keepdim=True) * scales.amin(1, keepdim=True)).sqrt()
    error_of = _scaled_error(weight, gram, shape)
    ranks, errors = ranks or Ranks(), torch.zeros(SCALE_STEPS, device=weight.device)
    for number in ranks.share(range(SCALE_STEPS)):
        errors[number] = error_of(scales[number])
    ranks.add_up(errors)
    best = errors.nan_to_num(nan=torch.inf).argmin(0, keepdim=True)
    return ranks.same(scales.index_select(0, best)[0])  # the number stays on the device: no wait for the GPU


def _scaled_error(weight: Tensor, gram: Tensor, shape: GridShape) -> Callable[[Tensor], Tensor]:
    """A function from a scale per channel to the output error of the rounded layer in all, trace(D G D^T).

    That is also the sum over the elements of D^T D * G. Both are symmetric, so a half of the products is enough.
    """
    fast = kernels("search", weight.device)
    if fast is None:
        return lambda scale: output_error(round_to_grid(weight * scale, shape) / scale - weight, gram).sum()
    twice = 2 * gram.triu(1) + torch.diag(gram.diagonal())
    parts = [(rows, twice[rows, rows.start :].flatten()) for rows in panels(len(gram))]

    def error(scale: Tensor) -> Tensor:
        d = fast.scaled_difference(weight, scale, shape)
        products = (torch.mm(d[:, rows].t(), d[:, rows.start :], out_dtype=torch.float32) for rows, _ in parts)
        return torch.stack([p.flatten() @ part for p, (_, part) in zip(products, parts, strict=True)]).sum()

    return error


def _shared(values: Tensor, share: Tensor) -> Tensor:
    """Mean over the channels that are the same one, given back to each of them."""
    size = int(share.max()) + 1
    total = torch.zeros(size, device=values.device).index_add_(0, share, values)
    count = torch.zeros(size, device=values.device).index_add_(0, share, torch.ones_like(values))
    return (total / count.clamp(min=1))[share]


def search_clip(weight: Tensor, gram: Tensor, shape: GridShape) -> tuple[Tensor, Tensor]:
    """The grid of each group whose shrunk range gives the least output error (section 3 of arXiv:2306.00978).

    A group's error is taken from its own block of the Gram matrix, as if other groups were exact.

    Args:
        weight: float32 (out, in), scaled. gram: float32 (in, in) of the scaled input.

    Returns:
        scale, zero: float32 (out, groups).
    """
    steps = round(CLIP_STEPS * (1 - SMALLEST_CLIP))
    fast = kernels("search", weight.device)
    if fast is not None:
        return fast.clipped_grid(weight, gram, shape, steps, 1 / CLIP_STEPS)
    grouped = shape.groups(weight).transpose(0, 1)  # (groups, out, group_size)
    blocks = gram.unflatten(0, (-1, shape.group_size)).unflatten(2, (-1, shape.group_size))
    blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (groups, group_size, group_size)
    low, high = grouped.aminmax(dim=-1)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_zero = fit_grid(low, high, shape)
    for step in range(steps):
        factor = 1 - step / CLIP_STEPS
        scale, zero = fit_grid(low * factor, high * factor, shape)
        flat = grouped.flatten(0, 1)
        integers = to_integers(flat, scale.flatten()[:, None], zero.flatten()[:, None], shape)
        rounded = to_weights(integers, scale.flatten()[:, None], zero.flatten()[:, None], shape)
        difference = (rounded - flat).view_as(grouped)
        error = (torch.bmm(difference, blocks) * difference).sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale.t().contiguous(), best_zero.t().contiguous()
