"""Adapters that live in the graph: matrices of all adapters side by side, and a mask that lets one of them through.

What genai hands to a model as an adapter it copies to the GPU at every token, so an adapter given as graph inputs costs
its whole size each time. Here the matrices are constants, and an adapter's file carries two numbers: which row of the
mask's table to take. onnxruntime takes a Slice's bounds from the CPU, so that nothing is copied and a CUDA graph, which
genai captures anew for each generator, has the choice built in.

Adapters lie in a file of their own. Adding one writes that file and the graph; the base's weights stay as they are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from phicli.errors import BadInput
from phicli.onnx.matching import Parts, match
from phicli.onnx.matrices import BLOCKS, MatrixFile, eight_bits
from phicli.onnx.peft_folder import Lora
from phicli.onnx.slots import LAYOUT_KEY, MODEL, Slot, find_slots

NAME = "resident"
BASE = "base.onnx"  # the graph without adapters, on the same weights
NAMES_KEY = "phicli.adapters"  # in the model's metadata: names in the order of the table's rows, as JSON
FIRST, LAST = "adapter_first", "adapter_last"  # int64 (1,): rows of the table to take
TABLE = "adapter_table"  # (adapters + 1, 1, rank): row 0 lets nothing through
DATA = "adapters.data-"  # files of matrices begin so
MULTIPLE = 16  # of all ranks together, so that matrix products take their fast path


def install(folder: Path, output: Path, adapters: Mapping[str, Mapping[str, Lora]], qkv: Sequence[int],
            weights: str = "float") -> None:
    """Write a graph that holds these adapters, and their matrices, into `output`.

    Any number of rows in a batch: with a table of its own (one row of it per row of the batch) and the bounds 0 and
    the number of rows, each may have another adapter.

    Args:
        folder: holds the graph without adapters (`BASE`). adapters: name -> updates as `read_peft` gives them.
        qkv: outputs of q, k and v. weights: "float" (the model's type) or "int8", see `eight_bits`.

    Raises:
        BadInput: an adapter for another model, or values that the model's float type cannot hold.
    """
    import onnx

    model = onnx.load(str(folder / BASE), load_external_data=False)
    found = list(find_slots(model.graph))
    if not found:
        raise BadInput("the builder's graph has no projections that adapters could be added to", where=folder / BASE)
    slots = [slot for slot, _ in found]
    matched = {name: match(loras, slots, qkv, Path(name)) for name, loras in adapters.items()}
    groups: dict[str, list[tuple[Slot, Any]]] = {}
    for slot, node in found:
        groups.setdefault(node.input[0], []).append((slot, node))
    layout = _Layout.of(matched, [[slot for slot, _ in group] for group in groups.values()])
    graph = _Graph(model.graph, layout, found[0][0].elem_type, weights == "int8")
    if layout.width:
        graph.add_mask()
        # A name of its own for each set of adapters: the graph of before keeps its matrices until it is replaced.
        with MatrixFile(output / f"{DATA}{_digest(adapters)}") as data:
            for group in groups.values():
                graph.add_group(group, matched, data)
    graph.write_nodes()
    properties = {p.key: p.value for p in model.metadata_props} | {LAYOUT_KEY: NAME, NAMES_KEY: json.dumps([*adapters])}
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, str(output / MODEL))


def adapter_tensors(position: int) -> dict[str, np.ndarray]:
    """What the file of the adapter at a position (from 0) carries."""
    return {FIRST: np.array([position + 1], np.int64), LAST: np.array([position + 2], np.int64)}


def installed(properties: Mapping[str, str], where: Path) -> list[str]:
    """Names of the adapters in a graph, from its metadata. Raises BadInput: damaged."""
    try:
        names = json.loads(properties[NAMES_KEY])
        if not isinstance(names, list):
            raise ValueError(names)
    except (KeyError, ValueError):
        raise BadInput("no list of the adapters in it", where=where, hint="phicli optimize --force") from None
    return names


@dataclass(frozen=True)
class _Layout:
    """Which columns of the stacked matrices belong to which adapter: name -> first column; width: of all."""

    start: dict[str, int]
    rank: dict[str, int]
    width: int

    @classmethod
    def of(cls, matched: Mapping[str, Mapping[Slot, Parts]], groups: Sequence[Sequence[Slot]]) -> "_Layout":
        rank = {name: max((sum(lora.rank for lora in _distinct(parts, group)) for group in groups), default=0)
                for name, parts in matched.items()}
        ends = [0, *accumulate(rank.values())]
        return cls(dict(zip(rank, ends, strict=False)), rank, -(-ends[-1] // MULTIPLE) * MULTIPLE)


def _distinct(parts: Mapping[Slot, Parts], group: Sequence[Slot]) -> list[Lora]:
    """The updates that fall on slots with one input; one that the graph splits in two counts once."""
    return list({id(lora): lora for slot in group for lora, _, _ in parts[slot]}.values())


class _Graph:
    """The graph being changed: constants, inputs and nodes that come in."""

    def __init__(self, graph: Any, layout: _Layout, elem_type: int, int8: bool):
        from onnx import helper

        self.graph, self.layout, self.elem_type, self.int8 = graph, layout, elem_type, int8
        self.dtype = helper.tensor_dtype_to_np_dtype(elem_type)
        self.first: list[Any] = []
        self.after: dict[str, list[Any]] = {}  # name of a node -> nodes that follow it

    def add_mask(self) -> None:
        from onnx import TensorProto, helper, numpy_helper

        table = np.zeros((len(self.layout.start) + 1, 1, self.layout.width), self.dtype)
        for row, (name, start) in enumerate(self.layout.start.items(), 1):
            table[row, 0, start : start + self.layout.rank[name]] = 1
        defaults = {FIRST: np.zeros(1, np.int64), LAST: np.ones(1, np.int64), TABLE: table}
        for name, value in defaults.items():
            dims: list[Any] = ["adapter_rows", 1, self.layout.width] if name == TABLE else [1]
            kind = self.elem_type if name == TABLE else TensorProto.INT64
            self.graph.input.append(helper.make_tensor_value_info(name, kind, dims))
            self.graph.initializer.append(numpy_helper.from_array(value, name))
        self.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "adapter_axis"))
        self.first.append(helper.make_node("Slice", [TABLE, FIRST, LAST, "adapter_axis"], ["adapter_mask"],
                                           "/lora/mask"))

    def add_group(self, group: list[tuple[Slot, Any]], matched: Mapping[str, Mapping[Slot, Parts]],
                  data: "MatrixFile") -> None:
        """Slots that read one input: x A once, masked; then B and a sum for each."""
        from onnx import helper

        slots = [slot for slot, _ in group]
        name = slots[0].name
        a = np.zeros((slots[0].inputs, self.layout.width), np.float32)
        b = {slot: np.zeros((self.layout.width, slot.outputs), np.float32) for slot in slots}
        for adapter, parts in matched.items():
            at = self.layout.start[adapter]
            for lora in _distinct(parts, slots):
                columns = slice(at, at + lora.rank)
                a[:, columns] = lora.a.T
                for slot in slots:
                    for update, rows, of in parts[slot]:
                        if update is lora:
                            b[slot][columns, rows] += lora.b[of].T * lora.scaling
                at += lora.rank
        if not a.any():  # no adapter has anything here
            return
        down, masked = f"lora.{name}.down", f"lora.{name}.masked"
        nodes = [self._product(group[0][1], group[0][1].input[0], f"lora_A.{name}", a, down, data),
                 helper.make_node("Mul", [down, "adapter_mask"], [masked], f"/lora/{name}/mask")]
        for slot, node in group:
            out, up = node.output[0], f"lora.{slot.name}.up"
            node.output[0] = f"{out}/base"
            nodes += [self._product(node, masked, f"lora_B.{slot.name}", b[slot], up, data),
                      helper.make_node("Add", [node.output[0], up], [out], f"/lora/{slot.name}/Add")]
            self.after[node.name], nodes = nodes, []

    def _product(self, like: Any, x: str, name: str, matrix: np.ndarray, out: str, data: "MatrixFile") -> Any:
        """The node x @ matrix, float32 (inputs, outputs); in 8 bits with the precision of activations of `like`."""
        from onnx import helper

        if not self.int8:
            self.graph.initializer.append(data.tensor(name, self._fits(matrix)))
            return helper.make_node("MatMul", [x, name], [out], f"/{out.replace('.', '/')}")
        block = next(size for size in BLOCKS if len(matrix) % size == 0)
        integers, scales = eight_bits(matrix, block)
        self.graph.initializer.extend([data.tensor(f"{name}.int8", integers),
                                       data.tensor(f"{name}.scales", self._fits(scales))])
        level = {a.name: a.i for a in like.attribute if a.name == "accuracy_level"}
        return helper.make_node(
            "MatMulNBits", [x, f"{name}.int8", f"{name}.scales"], [out], f"/{out.replace('.', '/')}",
            domain="com.microsoft", K=len(matrix), N=matrix.shape[1], bits=8, block_size=block, **level,
        )

    def write_nodes(self) -> None:
        nodes = list(self.first)
        for node in self.graph.node:
            nodes += [node, *self.after.get(node.name, ())]
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _fits(self, matrix: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            fitted = matrix.astype(self.dtype)
        if not np.isfinite(fitted.astype(np.float32)).all():
            raise BadInput("an adapter has values that are not finite, or too large for the model's float type")
        return fitted


def _digest(adapters: Mapping[str, Mapping[str, Lora]]) -> str:
    digest = hashlib.sha256()
    for name, loras in adapters.items():
        for module, lora in sorted(loras.items()):
            digest.update(f"{name}\0{module}\0{lora.scaling}\0".encode())
            digest.update(np.ascontiguousarray(lora.a).data)
            digest.update(np.ascontiguousarray(lora.b).data)
    return digest.hexdigest()[:12]
