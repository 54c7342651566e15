"""How an adapter's matrices get into the graph: one class per layout.

A layout gives the nodes of one slot and, for an adapter, the tensors of its file. More layouts (adapters resident in
the graph and chosen by an id, matrices in 8 bits) are more classes in `LAYOUTS`; nothing else knows the difference.
"""

from typing import Protocol

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from phicli.export.slots import Slot


class Layout(Protocol):
    """One way for adapters to enter the graph."""

    def nodes(self, slot: Slot, graph: GraphProto, x: str, base: str, out: str) -> list[NodeProto]:
        """The nodes that compute out = base + (x A) B, after adding inputs and initializers to the graph.

        Args:
            x: name of the projection's input. base: of its output. out: the name that the sum has to have.
        """

    def tensors(self, slot: Slot, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        """What an adapter's file holds for a slot.

        Args:
            a: float32 (inputs, rank). b: float32 (rank, outputs), the scaling folded in. Rank 0 means no change.
        """

    def shapes(self, slot: Slot) -> dict[str, tuple[int | None, ...]]:
        """Names and shapes of the tensors that an adapter's file must hold for a slot; None for the rank."""


class Inputs:
    """A and B are graph inputs of any rank; their defaults have rank 0, so the graph also runs with no adapter."""

    def nodes(self, slot: Slot, graph: GraphProto, x: str, base: str, out: str) -> list[NodeProto]:
        dtype = helper.tensor_dtype_to_np_dtype(slot.elem_type)
        rank = f"rank.{slot.name}"
        for name, shape in self.shapes(slot).items():
            dims = [rank if n is None else n for n in shape]
            graph.input.append(helper.make_tensor_value_info(name, slot.elem_type, dims))
            default = np.zeros([0 if n is None else n for n in shape], dtype)
            graph.initializer.append(numpy_helper.from_array(default, name))
        a, b = self.shapes(slot)
        down, up = f"lora.{slot.name}.down", f"lora.{slot.name}.up"
        return [
            helper.make_node("MatMul", [x, a], [down], f"/lora/{slot.name}/down"),
            helper.make_node("MatMul", [down, b], [up], f"/lora/{slot.name}/up"),
            helper.make_node("Add", [base, up], [out], f"/lora/{slot.name}/Add"),
        ]

    def tensors(self, slot: Slot, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        dtype = helper.tensor_dtype_to_np_dtype(slot.elem_type)
        return {name: np.ascontiguousarray(m, dtype) for name, m in zip(self.shapes(slot), (a, b), strict=True)}

    def shapes(self, slot: Slot) -> dict[str, tuple[int | None, ...]]:
        return {f"lora_A.{slot.name}": (slot.inputs, None), f"lora_B.{slot.name}": (None, slot.outputs)}


LAYOUTS: dict[str, Layout] = {"inputs": Inputs()}
