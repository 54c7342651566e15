"""Adapters in a graph with two ops of our own, LoraDown and LoraUp (see lora_op.c): one kernel each, nothing masked.

The cost of an adapter does not depend on how many lie beside it.
"""

from typing import Any

import numpy as np

from phicli.errors import BadInput
from phicli.onnx.groups import Columns, Group, ResidentGraph, fitted

DOMAIN = "phicli"
ID = "adapter_id"  # int64 (1,), or one for each row of a batch: 0 is no adapter, 1 the first
LARGEST_RANK = 1024
INPUTS, OUTPUTS = 32, 8  # sizes of a projection are multiples of these


class FusedGraph(ResidentGraph):
    """h = x A of the chosen adapter, then base + h B for each projection."""

    STEP = 16  # the kernels take ranks of multiples of 16

    def __init__(self, model: Any, columns: Columns, data: Any, weights: str):
        from onnx import helper

        assert weights == "float"
        super().__init__(model, columns, data)
        self.number(ID, np.zeros(1, np.int64), ["adapter_rows"])
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))

    @staticmethod
    def adapter_tensors(position: int) -> dict[str, np.ndarray]:
        return {ID: np.array([position + 1], np.int64)}

    def add(self, group: Group) -> None:
        from onnx import helper

        dtype = helper.tensor_dtype_to_np_dtype(group.slots[0].elem_type)
        self._check(group)
        ranks = list(self.columns.rank.values())
        a, bs = group.matrices(self.columns)
        rows = sum(ranks)
        down = f"lora.{group.name}.down"
        matrix = self.constant(f"lora_A.{group.name}", fitted(a[:, :rows].T, dtype))
        nodes = [helper.make_node("LoraDown", [ID, group.nodes[0].input[0], matrix], [down],
                                  f"/{down.replace('.', '/')}", domain=DOMAIN, ranks=ranks)]
        for slot, node, b in zip(group.slots, group.nodes, bs, strict=True):
            # Each adapter's part is (outputs, rank), one after the other.
            parts = np.concatenate([part.T.ravel() for part in np.split(b[:rows], np.cumsum(ranks)[:-1])])
            out = node.output[0]
            node.output[0] = f"{out}/base"
            matrix = self.constant(f"lora_B.{slot.name}", fitted(parts, dtype))
            nodes.append(helper.make_node("LoraUp", [ID, down, node.output[0], matrix], [out],
                                          f"/lora/{slot.name}/up", domain=DOMAIN, ranks=ranks))
            self.after[node.name], nodes = nodes, []

    def _check(self, group: Group) -> None:
        import onnx

        for slot in group.slots:
            if slot.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
                wrong = "bfloat16"
            elif slot.inputs % INPUTS or slot.outputs % OUTPUTS:
                wrong = f"a projection of {slot.inputs} to {slot.outputs}"
            elif max(self.columns.rank.values()) > LARGEST_RANK:
                wrong = f"a rank above {LARGEST_RANK}"
            else:
                continue
            raise BadInput(f"{slot.name}: {wrong} is not for the fused kernels",
                           hint="phicli optimize --adapter-layout resident")
