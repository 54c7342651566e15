"""Reading the quantized weights back out of an ONNX model, to compare them with those of the checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phicli.export.graph_file import read_model
from phicli.export.slots import MODEL, find_slots


@dataclass(frozen=True)
class PackedWeight:
    """The weight (integers - zeros) * scales of one MatMulNBits.

    integers: uint8 (outputs, inputs). scales: float32 (outputs, groups). zeros: uint8 (outputs, groups).
    """

    integers: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray


def read_integers(folder: Path) -> Iterator[tuple[str, PackedWeight]]:
    """The quantized projections of a model folder's layers, one by one: "0.qkv_proj" and its weight.

    Layout of MatMulNBits: B uint8 (outputs, groups, group size * bits / 8), low bits first; scales (outputs * groups);
    zero points uint8 (outputs, groups * bits / 8 rounded up), 1 << (bits - 1) where they are left out.
    """
    import onnx

    graph = read_model(folder / MODEL).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    def read(name: str) -> np.ndarray:
        return onnx.numpy_helper.to_array(tensors[name], base_dir=str(folder))

    for slot, node in find_slots(graph):
        if node.op_type == "MatMulNBits":
            has_zeros = len(node.input) > 3 and node.input[3]
            yield slot.name, _unpack(node, read(node.input[1]), read(node.input[2]),
                                     read(node.input[3]) if has_zeros else None)


def _unpack(node: Any, packed: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None) -> PackedWeight:
    sizes = {a.name: a.i for a in node.attribute}
    outputs, inputs, bits = sizes["N"], sizes["K"], sizes["bits"]
    groups = -(-inputs // sizes["block_size"])
    scales = scales.reshape(outputs, groups).astype(np.float32)
    if zeros is None:
        points = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    else:
        points = _spread(zeros.reshape(outputs, -1), bits)[:, :groups]
    return PackedWeight(_spread(packed.reshape(outputs, -1), bits)[:, :inputs], scales, points)


def _spread(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (rows, n) to uint8 (rows, n * 8 / bits), low bits first."""
    places = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(places, axis=2).reshape(len(packed), -1)
