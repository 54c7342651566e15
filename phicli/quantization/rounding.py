"""Integers for a weight on a given grid: to the nearest, or with GPTQ's error feedback.

GPTQ (Frantar et al., 2022, arXiv:2210.17323) rounds one input channel after the other and lets the channels that
are still to come make up for the error, by the inverse of the Gram matrix. The grid (scales and zero points of AWQ's
search) is fixed before, so channels may be taken in any order: the loudest first, while there is most left to
correct with.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from phicli.quantization.grid import GridShape, to_integers
from phicli.quantization.kernels import kernels

BLOCK = 128  # channels whose corrections stay inside one block before the rest of the weight is updated
DAMPING = 0.01  # of the mean diagonal, added to the diagonal; ten times more on each failed factorization


def round_nearest(weight: Tensor, gram: Tensor | None, scale: Tensor, zero: Tensor, shape: GridShape) -> Tensor:
    """Nearest integers, float32 (out, in); the Gram matrix is not looked at."""
    return to_integers(weight, scale, zero, shape)


def round_gptq(weight: Tensor, gram: Tensor, scale: Tensor, zero: Tensor, shape: GridShape) -> Tensor:
    """GPTQ's integers (Algorithm 1 of arXiv:2210.17323) on the given grid.

    Args:
        weight: float32 (out, in). gram: float32 (in, in), mean over tokens of x x^T.
        scale, zero: float32 (out, groups).

    Returns:
        float32 (out, in), whole numbers in [0, top].
    """
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    upper = _inverse_factor(gram[order][:, order]).contiguous()
    group_of = order // shape.group_size
    rest = weight[:, order].contiguous()
    fast = kernels("rounding", weight.device)
    round_block = fast.round_block if fast else round_block_plain
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        here = slice(start, end)
        errors = round_block(rest[:, here], upper[here, here], scale, zero, group_of[here], shape.top)
        rest[:, end:].addmm_(errors, upper[here, end:], alpha=-1)
    return rest[:, torch.argsort(order)]


def _inverse_factor(gram: Tensor) -> Tensor:
    """Upper triangular U with U^T U = G^-1, of the damped Gram matrix; channels that are always 0 count as average.

    G = R R^T with R upper triangular is the Cholesky factorization taken from the last channel back, and U = R^-1:
    one factorization and one triangular inverse, where GPTQ's Cholesky(inverse(G)) takes three steps.
    """
    diagonal = gram.diagonal()
    mean = diagonal.mean().clamp(min=1e-30)
    identity = torch.eye(len(gram), device=gram.device)
    damping = DAMPING
    for _ in range(6):
        damped = gram + torch.diag(torch.where(diagonal == 0, mean, damping * mean))
        factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        upper = torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True)
        if bool((failed == 0) & upper.diagonal().isfinite().all()):
            return upper
        damping *= 10
    return identity  # hopeless: no feedback, which is rounding to the nearest


def round_block_plain(weight: Tensor, upper: Tensor, scale: Tensor, zero: Tensor, groups: Tensor, top: int) -> Tensor:
    """Round the columns of one block one after the other, in place.

    Args:
        weight: float32 (out, block); holds the integers afterwards. upper: float32 (block, block).
        scale, zero: float32 (out, groups). groups: int64 (block,), of the columns.

    Returns:
        each column's error divided by its diagonal, float32 (out, block).
    """
    # Columns as rows: every step then works on contiguous memory.
    rest = weight.t().contiguous()
    scale, zero = scale[:, groups].t().contiguous(), zero[:, groups].t().contiguous()
    inverse, errors = 1 / scale, torch.empty_like(rest)
    diagonal = upper.diagonal().tolist()
    for c, pivot in enumerate(diagonal):
        q = torch.addcmul(zero[c], rest[c], inverse[c]).round_().clamp_(0, top)
        error = (rest[c] - (q - zero[c]) * scale[c]).div_(pivot)
        rest[c], errors[c] = q, error
        rest[c + 1 :].addr_(upper[c, c + 1 :], error, alpha=-1)
    weight.copy_(rest.t())
    return errors.t()


ROUNDINGS: dict[str, Callable[..., Tensor]] = {"nearest": round_nearest, "gptq": round_gptq}
