"""Slots: the places of a built graph where a LoRA adapter adds to a projection of a layer.

The graph is changed without its weights being read: external data stays on disk, untouched.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.errors import BadInput
from phicli.export.graph_file import read_model

NODE = re.compile(r"/model/layers\.(\d+)/(?:\w+/)*(\w+)/MatMul\w*")  # as genai's builder names projections
MODEL = "model.onnx"
LAYOUT_KEY = "phicli.slots"  # in the model's metadata: name of the layout
WEIGHT_INPUT = {"MatMulNBits": 2, "MatMul": 1}  # the constant that has the type of the activations


@dataclass(frozen=True)
class Slot:
    """One projection of one layer, as the graph has it: the builder fuses some and splits others.

    elem_type: of the activations, TensorProto.FLOAT, FLOAT16 or BFLOAT16.
    """

    layer: int
    module: str
    inputs: int
    outputs: int
    elem_type: int

    @property
    def name(self) -> str:
        """Such as "0.qkv_proj"; the tensors of an adapter are named after it."""
        return f"{self.layer}.{self.module}"


def find_slots(graph: Any) -> Iterator[tuple[Slot, Any]]:
    """The projections of a GraphProto's layers, each with its node; the same before and after `graph_inputs.add_slots`.

    A projection is a MatMulNBits, a MatMul with a constant where the weight is in floating point, or one with a weight
    that DequantizeLinear makes.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node if node.op_type in ("DequantizeLinear", "Transpose")}
    for node in graph.node:
        found = NODE.fullmatch(node.name)
        if not found or node.op_type not in WEIGHT_INPUT:
            continue
        place = node.input[WEIGHT_INPUT[node.op_type]]
        if sizes := _dequantized(place, made_by, constants):
            yield Slot(int(found[1]), found[2], *sizes), node
        elif weight := constants.get(place):
            attributes = {a.name: a.i for a in node.attribute}
            inputs, outputs = (attributes["K"], attributes["N"]) if node.op_type == "MatMulNBits" else weight.dims
            yield Slot(int(found[1]), found[2], inputs, outputs, weight.data_type), node


def _dequantized(name: str, made_by: dict[str, Any], constants: dict[str, Any]) -> tuple[int, int, int] | None:
    """Inputs, outputs and type of a weight that DequantizeLinear and Transpose make; None of another."""
    turned = made_by.get(name)
    made = made_by.get(turned.input[0]) if turned is not None and turned.op_type == "Transpose" else None
    if made is None or made.op_type != "DequantizeLinear":
        return None
    outputs, inputs = constants[made.input[0]].dims
    return inputs, outputs, constants[made.input[1]].data_type


def read_slots(folder: Path) -> tuple[str, list[Slot]]:
    """Name of the layout and all slots of a model folder.

    Raises:
        BadInput: no model there, a damaged one, or one without slots.
    """
    properties, graph = read_graph(folder)
    try:
        return properties[LAYOUT_KEY], [slot for slot, _ in find_slots(graph)]
    except (TypeError, ValueError, KeyError) as e:  # names that are no UTF-8 come as bytes, …
        raise BadInput(f"damaged model: {e}", where=folder / MODEL, hint="phicli optimize --force") from None


def read_graph(folder: Path) -> tuple[dict[str, str], Any]:
    """Metadata and GraphProto of a model folder whose graph takes adapters; raises as `read_slots`."""
    path = folder / MODEL
    try:
        model = read_model(path)
    except FileNotFoundError:
        raise BadInput("no model.onnx", where=folder, hint="phicli optimize") from None
    properties = {p.key: p.value for p in model.metadata_props}
    if LAYOUT_KEY not in properties:
        raise BadInput("this model takes no adapters", where=path, hint="phicli optimize --force")
    return properties, model.graph
