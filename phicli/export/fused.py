"""Adapters in a graph with ops of our own, LoraDown, LoraUp and LoraGatedUp (see lora_op.c): nothing is masked.

The cost of an adapter does not depend on how many lie beside it, but where the ops' library is not: see `portable`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from phicli.errors import BadInput
from phicli.export.groups import Columns, Group, ResidentGraph, fitted
from phicli.export.matrices import in_blocks
from phicli.export.portable import functions
from phicli.export.slots import Slot

DOMAIN = "phicli"
ID = "adapter_id"  # int64 (1,), or one for each row of a batch: 0 is no adapter, 1 the first
LARGEST_RANK = 1024
BLOCK = 8  # outputs that a CPU computes at a time
INPUTS, OUTPUTS = 32, BLOCK  # sizes of a projection are multiples of these


def takes_sizes(projections: Iterable[tuple[int, int]]) -> bool:
    """Whether the ops can compute beside projections of these inputs and outputs."""
    return not any(inputs % INPUTS or outputs % OUTPUTS for inputs, outputs in projections)


def takes_segments(slot: Slot) -> bool:
    """Whether outputs can have columns of h of their own: not in the kernels for CUDA."""
    from onnx import TensorProto

    return slot.elem_type == TensorProto.FLOAT


def lanes(slot: Slot) -> int:
    """Outputs that lie side by side in B."""
    from onnx import TensorProto

    return BLOCK if slot.elem_type == TensorProto.FLOAT else 1


class FusedGraph(ResidentGraph):
    """h = x A of the chosen adapter, then base + h B for each projection.

    The ops of silu(gate) * up after a gate and an up projection become one with the two sums. A and B are float16 or,
    for graphs in float32, int8 with a scale for each rank of A and each output of B.
    """

    STEP = 16  # the kernels take ranks of multiples of 16

    def __init__(self, model: Any, columns: Columns, data: Any, weights: str):
        from onnx import helper

        super().__init__(model, columns, data)
        self.model = model
        self.int8 = weights == "int8"
        self.number(ID, np.zeros(1, np.int64), ["adapter_rows"])
        self.readers: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))

    @staticmethod
    def adapter_tensors(position: int) -> dict[str, np.ndarray]:
        return {ID: np.array([position + 1], np.int64)}

    def add(self, group: Group) -> None:
        self.slot = group.slots[0]  # activations of all are of one type
        ends = group.segments() if takes_segments(self.slot) else [[slot.outputs] for slot in group.slots]
        of_adapters = [*group.segmented(ends, self.STEP).values()]
        self._check(group, max(a.shape[1] for a, _ in of_adapters))
        x, h = group.nodes[0].input[0], f"lora.{group.name}.down"
        a_name = self._matrix(f"lora_A.{group.name}", [a.T for a, _ in of_adapters], 1)
        names = [self._matrix(f"lora_B.{slot.name}", [bs[number].T for _, bs in of_adapters], lanes(slot))
                 for number, slot in enumerate(group.slots)]
        down = self._op("LoraDown", group.name, [x, a_name], h, [a.shape[1] for a, _ in of_adapters])
        ranks, last = [len(bs[0]) for _, bs in of_adapters], group.nodes[-1].name
        if gated := self._gated(group.nodes):
            self.removed |= {node.name for node in gated}
            inputs = [name for node, b in zip(group.nodes, names, strict=True) for name in (node.output[0], b)]
            up = self._op("LoraGatedUp", group.name, [h, *inputs], gated[-1].output[0], ranks, ends)
            self.after[last] = [down, up]
            return
        self.after[group.nodes[0].name] = [down]
        for slot, node, b, own in zip(group.slots, group.nodes, names, ends, strict=True):
            out = node.output[0]
            node.output[0] = f"{out}/base"
            up = self._op("LoraUp", slot.name, [h, node.output[0], b], out, ranks, [own])
            self.after.setdefault(node.name, []).append(up)

    def write(self) -> None:
        super().write()
        opset = next(entry.version for entry in self.model.opset_import if not entry.domain)
        self.model.functions.extend(functions(DOMAIN, opset, len(self.columns.rank), self.slot.elem_type,
                                              lanes(self.slot), self.int8, takes_segments(self.slot)))

    def _gated(self, nodes: tuple[Any, ...]) -> list[Any]:
        """Sigmoid, Mul, Mul that make silu(first) * second; none where the graph has something else there."""
        if len(nodes) != 2:
            return []
        gate, up = (node.output[0] for node in nodes)
        sigmoid = self._reader(gate, "Sigmoid")
        silu = self._reader(gate, "Mul")
        product = self._reader(up, "Mul")
        if not (sigmoid and silu and product) or len(self.readers[gate]) != 2 or len(self.readers[up]) != 1:
            return []
        inner, whole = {gate, sigmoid.output[0]}, {silu.output[0], up}
        alone = all(len(self.readers[node.output[0]]) == 1 for node in (sigmoid, silu))
        return [sigmoid, silu, product] if alone and inner == {*silu.input} and whole == {*product.input} else []

    def _reader(self, name: str, op: str) -> Any:
        return next((node for node in self.readers.get(name, ()) if node.op_type == op), None)

    def _op(self, op: str, name: str, inputs: list[str], output: str, ranks: list[int],
            ends: Sequence[Sequence[int]] = ()) -> Any:
        from onnx import helper

        own: dict[str, Any] = dict(zip(("ends", "ends2"), ends, strict=False)) if takes_segments(self.slot) else {}
        return helper.make_node(op, [ID, *inputs], [output], f"/lora/{name}/{op}", domain=DOMAIN, ranks=ranks, **own)

    def _matrix(self, name: str, parts: list[np.ndarray], side: int) -> str:
        """The constant of A, or of B's parts, (outputs, rank) of each adapter, one after the other."""
        kind = np.dtype(np.float32 if self.int8 else np.float16)
        return self.constant(name, np.concatenate([in_blocks(fitted(part, kind), side, self.int8) for part in parts]))

    def _check(self, group: Group, columns: int) -> None:
        import onnx

        for slot in group.slots:
            if slot.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
                wrong = "bfloat16"
            elif self.int8 and slot.elem_type != onnx.TensorProto.FLOAT:
                wrong = "float16 with adapters in int8"
            elif not takes_sizes([(slot.inputs, slot.outputs)]):
                wrong = f"a projection of {slot.inputs} to {slot.outputs}"
            elif columns > LARGEST_RANK:
                wrong = f"a rank above {LARGEST_RANK}"
            else:
                continue
            raise BadInput(f"{slot.name}: {wrong} is not for the fused kernels",
                           hint="phicli optimize --adapter-layout resident")
