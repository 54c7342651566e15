"""Gram matrices of layers' inputs: all that the searches and GPTQ need to know of the calibration."""

import torch
from torch import Tensor

PANELS = 4  # of rows of the upper triangle; each panel is one product, and 3/8 of the work falls away


def panels(width: int) -> list[slice]:
    """Rows of a symmetric matrix in panels; of each panel the columns from its first row on are enough."""
    step = -(-width // PANELS)
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


class GramSum:
    """Sums x x^T and |x| over tokens.

    Args:
        width: of the inputs x. count: tokens in all, that the means are over.
    """

    def __init__(self, width: int, count: int, device: torch.device):
        self.count = count
        self.sum = torch.zeros(width, width, device=device)
        self.absolute = torch.zeros(width, device=device)

    def add(self, x: Tensor) -> None:
        """Take inputs (tokens, width) of any float dtype; products and sums are float32."""
        for rows in panels(x.shape[1]):
            left, right = x[:, rows].t(), x[:, rows.start :]
            panel = self.sum[rows, rows.start :]
            if x.is_cuda and x.dtype != torch.float32:  # exact products of fp16 at its speed
                panel += torch.mm(left, right, out_dtype=torch.float32)
            else:
                panel.addmm_(left.float(), right.float())
        self.absolute += x.abs().sum(0, dtype=torch.float32)

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean over tokens of x x^T, float32 (width, width), and of |x|, float32 (width,). Ends the summing."""
        upper = self.sum.div_(self.count).triu_()
        return upper + upper.triu(1).t(), self.absolute / self.count
