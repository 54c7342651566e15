"""Adapters' matrices as constants of a graph, in a file of their own."""

from pathlib import Path
from typing import Any

import numpy as np

BLOCKS = (128, 64, 32, 16)  # inputs with one scale, of 8-bit matrices: the largest that fits
PAGE = 4096  # what onnxruntime maps from a file begins at a multiple of it


def eight_bits(matrix: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix for MatMulNBits: nearest integers, symmetric, a scale for each `block` inputs of an output.

    Args:
        matrix: float32 (inputs, outputs).

    Returns:
        uint8 (outputs, blocks, block), zero point 128, and scales, float32 (outputs * blocks,).
    """
    groups = np.ascontiguousarray(matrix.T).reshape(matrix.shape[1], -1, block)
    scales = np.maximum(np.abs(groups).max(-1), 1e-8) / 127
    return (np.rint(groups / scales[..., None]) + 128).astype(np.uint8), scales.reshape(-1)


def in_blocks(matrix: np.ndarray, lanes: int, int8: bool) -> np.ndarray:
    """A matrix for the ops of lora_op.c, which read it in order: of each `lanes` rows all columns, one by one.

    Args:
        matrix: float32 (rows, columns).

    Returns:
        (rows / lanes * columns * lanes,) of the same type; with int8 uint8, each block behind its rows' scales.
    """
    def blocks(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(-1, lanes, matrix.shape[1]).swapaxes(1, 2).reshape(len(rows) // lanes, -1)

    if not int8:
        return blocks(matrix).ravel()
    integers, scales = eight_bits(matrix.T, matrix.shape[1])
    heads = scales.astype(np.float32).view(np.uint8).reshape(-1, 4 * lanes)
    return np.concatenate([heads, blocks(integers ^ 128)], 1).ravel()  # without the zero point: int8


def from_eight_bits(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The matrix, float32 (inputs, outputs), that `eight_bits` was given, rounded."""
    numbers = (integers.astype(np.float32) - 128) * scales.astype(np.float32).reshape(*integers.shape[:2], 1)
    return numbers.reshape(len(integers), -1).T


def from_blocks(data: np.ndarray, columns: int, lanes: int) -> np.ndarray:
    """The matrix, float32 (rows, columns), that `in_blocks` was given; rounded, where `data` is of bytes."""
    def rows(blocks: np.ndarray) -> np.ndarray:
        return blocks.reshape(-1, columns, lanes).swapaxes(1, 2).reshape(-1, columns).astype(np.float32)

    if data.dtype != np.uint8:
        return rows(data)
    blocks = data.reshape(-1, lanes * (columns + 4))
    scales = np.ascontiguousarray(blocks[:, : 4 * lanes]).view(np.float32).reshape(-1, 1)
    return rows(np.ascontiguousarray(blocks[:, 4 * lanes :]).view(np.int8)) * scales


class MatrixFile:
    """A file of tensors, written one after the other."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "MatrixFile":
        self.file = self.path.open("wb")
        return self

    def tensor(self, name: str, value: np.ndarray) -> Any:
        """Write a tensor; returns the constant that refers to it."""
        from onnx import TensorProto, helper

        value = np.ascontiguousarray(value)
        self.file.write(b"\0" * (-self.file.tell() % PAGE))
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape,
                             data_location=TensorProto.EXTERNAL)
        place = {"location": self.path.name, "offset": self.file.tell(), "length": value.nbytes}
        for key, entry in place.items():
            tensor.external_data.add(key=key, value=str(entry))
        self.file.write(value.data)
        return tensor

    def __exit__(self, *exc: object) -> None:
        self.file.close()
