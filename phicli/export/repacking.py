"""From the integers of a checkpoint to the layout of onnxruntime's MatMulNBits, without a detour through floats."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from phicli.checkpoints.awq import PER_WORD, low_first

MIDDLE = -0x77777778  # an int32 of eights
MIDDLES = 0x88  # two in a byte
TENSORRT = "trt-rtx"  # what the builder calls it; its integers are signed


@dataclass
class Projection:
    """A quantized linear as genai's builder takes it; the attributes have the names that it reads.

    qweight: uint8 (outputs, groups, group size * bits / 8), low bits first. scales: float (outputs * groups).
    qzeros: uint8 (outputs * groups packed), each output's padded to whole bytes, or None: in the middle.
    bias: float (outputs) or None.
    """

    qweight: Tensor
    scales: Tensor
    qzeros: Tensor | None
    bias: Tensor | None
    bits: int
    g_idx: None = None

    @property
    def out_features(self) -> int:
        return self.qweight.shape[0]

    @property
    def in_features(self) -> int:
        return self.qweight.shape[1] * self.group_size

    @property
    def group_size(self) -> int:
        return self.qweight.shape[2] * 8 // self.bits

    def rows(self, rows: slice) -> "Projection":
        """The linear that gives some of the outputs."""
        n = self.out_features
        scales = self.scales.view(n, -1)[rows].reshape(-1)
        zeros = None if self.qzeros is None else self.qzeros.view(n, -1)[rows].reshape(-1)
        bias = None if self.bias is None else self.bias[rows]
        return Projection(self.qweight[rows].contiguous(), scales, zeros, bias, self.bits)

    def signed(self) -> "Projection":
        """The same 4-bit numbers as signed ones, 8 less, and so with zero points of 0.

        Raises:
            ValueError: other bits, or zero points that are not all in the middle.
        """
        if self.bits != 4:
            raise ValueError(f"{self.bits} bits")
        zeros = None if self.qzeros is None else self.qzeros ^ MIDDLES
        if zeros is not None and bool(zeros.any()):
            raise ValueError("some")
        return Projection(self.qweight ^ MIDDLES, self.scales, zeros, self.bias, self.bits)


def from_awq(tensors: dict[str, Tensor], bits: int) -> Projection:
    """AWQ "gemm": qweight int32 (in, out / 8), qzeros int32 (groups, out / 8) or none, scales (groups, out)."""
    if bits != 4:
        raise ValueError(f"{bits} bits")
    scales = tensors["scales"].t().contiguous()
    outputs, groups = scales.shape
    weight = low_first(tensors["qweight"]).reshape(outputs, groups, -1)
    zeros = tensors.get("qzeros")
    if zeros is None:
        zeros = torch.full((groups, outputs // PER_WORD), MIDDLE, dtype=torch.int32)
    return Projection(weight, scales.view(-1), low_first(zeros).reshape(-1), tensors.get("bias"), bits)


def from_olive(tensors: dict[str, Tensor], bits: int) -> Projection:
    """Olive: qweight uint8 (out, in * bits / 8), qzeros uint8 (out, groups packed) or none, scales (out, groups)."""
    outputs, groups = tensors["scales"].shape
    zeros = tensors.get("qzeros")
    if zeros is None:
        middle = sum(1 << (bits - 1) << shift for shift in range(0, 8, bits))
        zeros = torch.full((outputs, -(-groups * bits // 8)), middle, dtype=torch.uint8)
    weight = tensors["qweight"].reshape(outputs, groups, -1)
    return Projection(weight, tensors["scales"].reshape(-1), zeros.reshape(-1), tensors.get("bias"), bits)


QUANT_METHODS: dict[str, Callable[[dict[str, Tensor], int], Projection]] = {"awq": from_awq, "olive": from_olive}
