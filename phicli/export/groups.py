"""What adapters add to the projections of a graph: those that read one input are a group and share x A."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from phicli.checkpoints.peft_folder import Lora
from phicli.errors import BadInput
from phicli.export.matching import Parts
from phicli.export.slots import Slot

MULTIPLE = 16  # of all ranks together, so that matrix products take their fast path


@dataclass(frozen=True)
class Columns:
    """Which columns of stacked matrices belong to which adapter: name -> first, name -> how many; width: of all."""

    start: dict[str, int]
    rank: dict[str, int]
    width: int

    @classmethod
    def of(cls, ranks: Mapping[str, int], step: int) -> "Columns":
        """Side by side, each rank rounded up to a multiple of `step`."""
        rank = {name: -(-n // step) * step for name, n in ranks.items()}
        ends = [0, *accumulate(rank.values())]
        return cls(dict(zip(rank, ends, strict=False)), rank, -(-ends[-1] // MULTIPLE) * MULTIPLE)


@dataclass(frozen=True)
class Group:
    """Projections with one input, and the updates that each adapter has for them.

    nodes: the projections' nodes. updates: adapter -> update and, for each slot, the parts of it that fall there.
    """

    slots: tuple[Slot, ...]
    nodes: tuple[Any, ...]
    updates: dict[str, list[tuple[Lora, dict[Slot, Parts]]]]

    @classmethod
    def of(cls, members: Sequence[tuple[Slot, Any]], matched: Mapping[str, Mapping[Slot, Parts]]) -> "Group":
        updates = {}
        for name, parts in matched.items():
            # One update may fall on two slots: the graph splits what the checkpoint has fused.
            distinct = {id(lora): lora for slot, _ in members for lora, _, _ in parts[slot]}
            updates[name] = [(lora, {slot: [part for part in parts[slot] if part[0] is lora] for slot, _ in members})
                             for lora in distinct.values()]
        slots, nodes = zip(*members, strict=True)
        return cls(slots, nodes, updates)

    @property
    def name(self) -> str:
        return self.slots[0].name

    @property
    def ranks(self) -> dict[str, int]:
        """Of each adapter here: the sum over its updates."""
        return {name: sum(lora.rank for lora, _ in updates) for name, updates in self.updates.items()}

    def matrices(self, columns: Columns) -> tuple[np.ndarray, list[np.ndarray]]:
        """A, float32 (inputs, width), and B of each slot, float32 (width, outputs), the scaling folded into B."""
        a = np.zeros((self.slots[0].inputs, columns.width), np.float32)
        b = [np.zeros((columns.width, slot.outputs), np.float32) for slot in self.slots]
        for name, updates in self.updates.items():
            at = columns.start[name]
            for lora, parts in updates:
                mine = slice(at, at + lora.rank)
                a[:, mine] = lora.a.T
                for slot, matrix in zip(self.slots, b, strict=True):
                    for _, outputs, of in parts[slot]:
                        matrix[mine, outputs] += lora.b[of].T * lora.scaling
                at += lora.rank
        return a, b


def fitted(matrix: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The matrix in a float type. Raises BadInput: a value that it cannot hold."""
    with np.errstate(over="ignore"):
        found = matrix.astype(dtype)
    if not np.isfinite(found.astype(np.float32)).all():
        raise BadInput(f"an adapter has values that are not finite, or too large for {dtype}")
    return found


class ResidentGraph:
    """A graph that adapters are put into: its constants, and nodes that come in before and after others."""

    def __init__(self, model: Any, columns: Columns, data: Any):
        self.graph, self.columns, self.data = model.graph, columns, data
        self.first: list[Any] = []
        self.after: dict[str, list[Any]] = {}  # name of a node -> nodes that follow it
        self.removed: set[str] = set()  # names of nodes that others replace

    def constant(self, name: str, value: np.ndarray) -> str:
        """Put a matrix into the file of matrices and the graph; returns its name."""
        self.graph.initializer.append(self.data.tensor(name, value))
        return name

    def number(self, name: str, value: np.ndarray, dims: Sequence[str | int]) -> None:
        """An input of the graph with a default."""
        from onnx import helper, numpy_helper

        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.graph.input.append(helper.make_tensor_value_info(name, kind, list(dims)))
        self.graph.initializer.append(numpy_helper.from_array(value, name))

    def write(self) -> None:
        """Put the new nodes among the graph's own."""
        nodes = list(self.first)
        for node in self.graph.node:
            nodes += [*([] if node.name in self.removed else [node]), *self.after.get(node.name, ())]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
