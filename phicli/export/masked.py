"""Adapters in a graph of onnxruntime's own ops: all matrices side by side, and a mask that lets one of them through."""

from typing import Any

import numpy as np

from phicli.export.groups import Columns, Group, ResidentGraph, fitted
from phicli.export.matrices import BLOCKS, eight_bits

FIRST, LAST = "adapter_first", "adapter_last"  # int64 (1,): rows of the table to take, a Slice's bounds
TABLE = "adapter_table"  # (adapters + 1, 1, width): row 0 lets nothing through


class MaskedGraph(ResidentGraph):
    """x A for all adapters at once, times the mask; then B and a sum.

    Any number of rows in a batch: with a table of its own (one row of it per row of the batch) and the bounds 0 and
    the number of rows, each may have another adapter.
    """

    STEP = 1  # ranks need not be rounded up

    def __init__(self, model: Any, columns: Columns, data: Any, weights: str):
        super().__init__(model, columns, data)
        self.int8 = weights == "int8"

    @staticmethod
    def adapter_tensors(position: int) -> dict[str, np.ndarray]:
        return {FIRST: np.array([position + 1], np.int64), LAST: np.array([position + 2], np.int64)}

    def _add_mask(self, dtype: np.dtype) -> None:
        from onnx import helper, numpy_helper

        table = np.zeros((len(self.columns.start) + 1, 1, self.columns.width), dtype)
        for row, (name, start) in enumerate(self.columns.start.items(), 1):
            table[row, 0, start : start + self.columns.rank[name]] = 1
        self.number(FIRST, np.zeros(1, np.int64), [1])
        self.number(LAST, np.ones(1, np.int64), [1])
        self.number(TABLE, table, ["adapter_rows", 1, self.columns.width])
        self.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "adapter_axis"))
        self.first.append(helper.make_node("Slice", [TABLE, FIRST, LAST, "adapter_axis"], ["adapter_mask"],
                                           "/lora/mask"))

    def add(self, group: Group) -> None:
        from onnx import helper

        dtype = helper.tensor_dtype_to_np_dtype(group.slots[0].elem_type)
        if not self.first:
            self._add_mask(dtype)
        a, bs = group.matrices(self.columns)
        name, like = group.name, group.nodes[0]
        down, masked = f"lora.{name}.down", f"lora.{name}.masked"
        nodes = [self._product(like, like.input[0], f"lora_A.{name}", a, down, dtype),
                 helper.make_node("Mul", [down, "adapter_mask"], [masked], f"/lora/{name}/mask")]
        for slot, node, b in zip(group.slots, group.nodes, bs, strict=True):
            out, up = node.output[0], f"lora.{slot.name}.up"
            node.output[0] = f"{out}/base"
            nodes += [self._product(node, masked, f"lora_B.{slot.name}", b, up, dtype),
                      helper.make_node("Add", [node.output[0], up], [out], f"/lora/{slot.name}/Add")]
            self.after[node.name], nodes = nodes, []

    def _product(self, like: Any, x: str, name: str, matrix: np.ndarray, out: str, dtype: np.dtype) -> Any:
        """The node x @ matrix, float32 (inputs, outputs); in 8 bits with the precision of activations of `like`."""
        from onnx import helper

        if not self.int8:
            return helper.make_node("MatMul", [x, self.constant(name, fitted(matrix, dtype))], [out],
                                    f"/{out.replace('.', '/')}")
        block = next(size for size in BLOCKS if len(matrix) % size == 0)
        integers, scales = eight_bits(matrix, block)
        inputs = [x, self.constant(f"{name}.int8", integers), self.constant(f"{name}.scales", fitted(scales, dtype))]
        level = {a.name: a.i for a in like.attribute if a.name == "accuracy_level"}
        return helper.make_node(
            "MatMulNBits", inputs, [out], f"/{out.replace('.', '/')}",
            domain="com.microsoft", K=len(matrix), N=matrix.shape[1], bits=8, block_size=block, **level,
        )
