"""The layout "inputs": an adapter's A and B are inputs of the graph, of any rank, that its file holds.

Their defaults have rank 0, so the graph also runs with no adapter. The layouts that hold adapters in the graph itself
are `resident.GRAPHS`.
"""

from pathlib import Path

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from phicli.errors import BadInput
from phicli.export.slots import LAYOUT_KEY, Slot, find_slots

NAME = "inputs"


def add_slots(path: Path) -> list[Slot]:
    """Give every projection of an ONNX file's layers a slot; the file is replaced, its external data stays.

    Raises:
        BadInput: the graph has no projection that could get one.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    found = {node.name: (slot, node) for slot, node in find_slots(model.graph)}
    if not found:
        raise BadInput("the builder's graph has no projections that adapters could be added to", where=path)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in found:
            slot, out = found[node.name][0], node.output[0]
            node.output[0] = f"{out}/base"
            nodes += _nodes(slot, model.graph, node.input[0], node.output[0], out)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, LAYOUT_KEY: NAME})
    onnx.save(model, str(path))
    return [slot for slot, _ in found.values()]


def tensors(slot: Slot, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """What an adapter's file holds for a slot.

    Args:
        a: float (inputs, rank). b: float (rank, outputs), the scaling folded in. Rank 0 means no change.
    """
    dtype = helper.tensor_dtype_to_np_dtype(slot.elem_type)
    return {name: np.ascontiguousarray(m, dtype) for name, m in zip(shapes(slot), (a, b), strict=True)}


def shapes(slot: Slot) -> dict[str, tuple[int | None, ...]]:
    """Names and shapes of the tensors that an adapter's file must hold for a slot; None for the rank."""
    return {f"lora_A.{slot.name}": (slot.inputs, None), f"lora_B.{slot.name}": (None, slot.outputs)}


def _nodes(slot: Slot, graph: GraphProto, x: str, base: str, out: str) -> list[NodeProto]:
    """The nodes that compute out = base + (x A) B, after adding inputs and their defaults to the graph.

    x: name of the projection's input. base: of its output. out: the name that the sum has to have.
    """
    dtype = helper.tensor_dtype_to_np_dtype(slot.elem_type)
    rank = f"rank.{slot.name}"
    for name, shape in shapes(slot).items():
        dims = [rank if n is None else n for n in shape]
        graph.input.append(helper.make_tensor_value_info(name, slot.elem_type, dims))
        default = np.zeros([0 if n is None else n for n in shape], dtype)
        graph.initializer.append(numpy_helper.from_array(default, name))
    a, b = shapes(slot)
    down, up = f"lora.{slot.name}.down", f"lora.{slot.name}.up"
    return [
        helper.make_node("MatMul", [x, a], [down], f"/lora/{slot.name}/down"),
        helper.make_node("MatMul", [down, b], [up], f"/lora/{slot.name}/up"),
        helper.make_node("Add", [base, up], [out], f"/lora/{slot.name}/Add"),
    ]
