"""Adapters of a graph that runs: their matrices are inputs of it, so that adapters come and go between two runs.

An op has the matrices of all adapters one after the other, as in the file (`fused`, `in_blocks`); one that comes is put
behind them, where there is room for more, and its ranks into a table that all ops read. What a batch has at a time is
an `AdapterSet`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phicli.checkpoints.peft_folder import Lora
from phicli.errors import BadInput, Missing
from phicli.export.fused import DOMAIN, LARGEST_RANK, FusedGraph, lanes
from phicli.export.groups import Group, fitted
from phicli.export.matching import match
from phicli.export.matrices import in_blocks
from phicli.export.slots import find_slots

RANKS = "phicli.ranks"  # int64 (ops, adapters)
MOST = 1024  # adapters that an op knows, MAX_ADAPTERS of lora.h
ROW = "row"  # attribute of an op: its line in that


@dataclass(frozen=True)
class AdapterSet:
    """numbers: key of an adapter -> its number in the graph, from 1. inputs: name of a graph's input -> value."""

    numbers: Mapping[int, int]
    inputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Encoded:
    """An adapter as the ops read it: of each op the rank, of each input the numbers."""

    ranks: list[int]
    matrices: dict[str, np.ndarray]


class Adapters:
    """The LoRA ops of a GraphProto and the adapters that it was built with; takes them out of its constants.

    Keys are numbers that are given once: 1 to the first adapter of the graph.

    Args:
        data: the folder that the names of external data are relative to. count: of adapters in it. qkv: outputs of q,
            k and v.
    """

    def __init__(self, graph: Any, data: Path, count: int, qkv: Sequence[int]):
        from onnx import TensorProto, helper

        self._slots = [(slot, node.input[0]) for slot, node in find_slots(graph)]
        self._slots_by_name = {slot.name: slot for slot, _ in self._slots}
        self._ops = [node for node in graph.node if node.domain == DOMAIN]
        self._qkv, self._last = qkv, count
        self._rooms: dict[str, np.ndarray] = {}  # what `current` has the beginnings of, once an adapter came
        self._lists = [{a.name: list(a.ints) for a in node.attribute} for node in self._ops]
        names = [name for node in self._ops for name in _matrices(node)]
        constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name in set(names)}
        self.int8 = any(tensor.data_type == TensorProto.UINT8 for tensor in constants.values())
        whole = {name: _read(constants[name], data) for name in names}
        ranks = np.array([own["ranks"] for own in self._lists], np.int64).reshape(len(self._ops), count)
        self.current = AdapterSet({key: key for key in range(1, count + 1)}, whole | {RANKS: ranks} if names else {})
        self._encoded = {key: self._cut(key) for key in self.current.numbers} if names else {}
        for name in names:
            graph.initializer.remove(constants[name])
            graph.input.append(helper.make_tensor_value_info(name, constants[name].data_type, [f"{name}.size"]))
        if names:
            graph.input.append(helper.make_tensor_value_info(RANKS, TensorProto.INT64, ["ops", "adapters"]))
        for number, node in enumerate(self._ops):
            node.input.append(RANKS)
            node.attribute.append(helper.make_attribute(ROW, number))

    def add(self, loras: Mapping[str, Lora], source: Path, used: Collection[int]) -> int:
        """Take an adapter in; returns its key. Where there is no room, others that are not `used` any more go.

        What lies in `current` stays as it is: a batch may run with it meanwhile.

        Raises:
            BadInput: one for another model, or with parts that the graph has no ops for. Missing: too many.
        """
        new = self._encode(loras, source)
        at = {name: matrix.size for name, matrix in self.current.inputs.items()}
        if len(self._encoded) == MOST or not self._rooms or any(
                at[name] + matrix.size > self._rooms[name].size for name, matrix in new.matrices.items()):
            at = self._move(new, used)
        self._last += 1
        self._encoded[self._last] = self._placed(new, at)
        matrices = {name: self._rooms[name][: at[name] + matrix.size] for name, matrix in new.matrices.items()}
        ranks = np.array([one.ranks for one in self._encoded.values()], np.int64).T.copy()
        self.current = AdapterSet({key: number for number, key in enumerate(self._encoded, 1)},
                                  matrices | {RANKS: ranks})
        return self._last

    def _move(self, new: Encoded, used: Collection[int]) -> dict[str, int]:
        """Take the adapters that are used to where there is room for these, the new one, and as many again."""
        kept = {key: one for key, one in self._encoded.items() if key in used}
        if len(kept) == MOST:
            raise Missing(f"there are {MOST} adapters already", hint="remove some")
        sizes = {name: sum(one.matrices[name].size for one in (new, *kept.values())) for name in new.matrices}
        self._rooms = {name: np.empty(2 * size, new.matrices[name].dtype) for name, size in sizes.items()}
        at, self._encoded = dict.fromkeys(sizes, 0), {}
        for key, one in kept.items():
            self._encoded[key] = self._placed(one, at)
            at = {name: at[name] + matrix.size for name, matrix in one.matrices.items()}
        return at

    def _placed(self, one: Encoded, at: Mapping[str, int]) -> Encoded:
        """Copy an adapter to these places."""
        views = {name: self._rooms[name][at[name] :][: matrix.size] for name, matrix in one.matrices.items()}
        for name, matrix in one.matrices.items():
            views[name][:] = matrix
        return Encoded(one.ranks, views)

    def _encode(self, loras: Mapping[str, Lora], source: Path) -> Encoded:
        matched = {"": match(dict(loras), [slot for slot, _ in self._slots], self._qkv, source)}
        left = {slot.name for slot, parts in matched[""].items() if parts}
        ranks, matrices = [0] * len(self._ops), dict[str, np.ndarray]()
        downs = {node.input[1]: at for at, node in enumerate(self._ops) if node.op_type == "LoraDown"}
        for x, down in downs.items():
            group = Group.of([(slot, None) for slot, of in self._slots if of == x], {"": matched[""]})
            ups = [at for at, node in enumerate(self._ops) if node.input[1] == self._ops[down].output[0]]
            given = [self._lists[at].get(name) for at in ups
                     for name, _ in zip(("ends", "ends2"), _matrices(self._ops[at]), strict=False)]
            ends = [own or [slot.outputs] for own, slot in zip(given, group.slots, strict=True)]
            a, bs = group.segmented(ends, FusedGraph.STEP)[""]
            if a.shape[1] > LARGEST_RANK:
                raise BadInput(f"a rank above {LARGEST_RANK} is not for the fused kernels", where=source)
            ranks[down] = a.shape[1]
            matrices[self._ops[down].input[2]] = self._blocks(a.T, 1)
            names = [name for at in ups for name in _matrices(self._ops[at])]
            for name, slot, b in zip(names, group.slots, bs, strict=True):
                matrices[name] = self._blocks(b.T, lanes(slot))
                left.discard(slot.name)
            for at in ups:
                ranks[at] = len(bs[0])
        if left:
            raise BadInput(f"it adapts {sorted(left)[0]}, where this model has no place for adapters", where=source,
                           hint="phicli optimize --adapter NAME=FOLDER")
        return Encoded(ranks, matrices)

    def _blocks(self, matrix: np.ndarray, side: int) -> np.ndarray:
        return in_blocks(fitted(matrix, np.dtype(np.float32 if self.int8 else np.float16)), side, self.int8)

    def _cut(self, number: int) -> Encoded:
        """An adapter out of what the graph was built with."""
        inputs, at = self.current.inputs, number - 1
        ranks = inputs[RANKS]
        matrices = {}
        for op, node in enumerate(self._ops):
            for name in _matrices(node):
                slot = self._slots_by_name[name.removeprefix("lora_A.").removeprefix("lora_B.")]
                down = node.op_type == "LoraDown"
                width = slot.inputs if down else slot.outputs
                scales = ranks[op] if down else np.full_like(ranks[op], width)
                sizes = ranks[op] * width + (4 * scales if self.int8 else 0)
                matrices[name] = inputs[name][sizes[:at].sum() :][: sizes[at]]
        return Encoded([int(rank) for rank in ranks[:, at]], matrices)


def _matrices(node: Any) -> list[str]:
    """Names of an op's inputs that hold matrices."""
    return [node.input[2]] if node.op_type == "LoraDown" else list(node.input[3:6:2])


def _read(tensor: Any, data: Path) -> np.ndarray:
    """A constant, where it lies in its file."""
    from onnx import TensorProto, helper, numpy_helper

    if tensor.data_location != TensorProto.EXTERNAL:
        return np.ascontiguousarray(numpy_helper.to_array(tensor))
    place = {entry.key: entry.value for entry in tensor.external_data}
    return np.memmap(data / place["location"], helper.tensor_dtype_to_np_dtype(tensor.data_type), "r",
                     int(place.get("offset", 0)), tuple(tensor.dims))
