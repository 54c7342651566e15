"""What adapters add to the projections of a graph: those that read one input are a group and share x A."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from phicli.checkpoints.peft_folder import Lora
from phicli.errors import BadInput
from phicli.export.matching import Parts
from phicli.export.slots import Slot

MOST_SEGMENTS = 3  # that lora_op.c takes
MULTIPLE = 16  # of all ranks together, so that matrix products take their fast path, and of segments


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
                self._place(lora, parts, a[:, at : at + lora.rank], [m[at : at + lora.rank] for m in b])
                at += lora.rank
        return a, b

    def _place(self, lora: Lora, parts: Mapping[Slot, Parts], a: np.ndarray, b: Sequence[np.ndarray]) -> None:
        """Add an update to its columns of A and its rows of each slot's B."""
        a += lora.a.T
        for slot, matrix in zip(self.slots, b, strict=True):
            for _, outputs, of in parts[slot]:
                matrix[:, outputs] += lora.b[of].T * lora.scaling

    def segments(self) -> list[list[int]]:
        """For each slot, the outputs at which its segments end; a segment is what updates of one module add to.

        One segment, all of the outputs, where updates of different modules overlap, or there are too many.
        """
        whole = [[slot.outputs] for slot in self.slots]
        covered = sorted({self._covered(parts) for updates in self.updates.values() for _, parts in updates})
        taken = sorted(interval for intervals in covered for interval in intervals)
        apart = all(slot < other or stop <= start for (slot, _, stop), (other, start, _) in pairwise(taken))
        if not apart or not 1 < len(covered) <= MOST_SEGMENTS or any(stop % MULTIPLE for _, _, stop in taken):
            return whole
        ends = []
        for number, slot in enumerate(self.slots):
            stops = [max((stop for at, _, stop in intervals if at == number), default=0) for intervals in covered]
            ends.append([*accumulate(stops[:-1], max), slot.outputs])
        return ends

    def _covered(self, parts: Mapping[Slot, Parts]) -> tuple[tuple[int, int, int], ...]:
        """Slots that an update falls on, by number, and from where to where in their outputs."""
        return tuple((number, *outputs.indices(slot.outputs)[:2]) for number, slot in enumerate(self.slots)
                     for _, outputs, _ in parts[slot])

    def segmented(self, ends: Sequence[Sequence[int]], step: int) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
        """Of each adapter A, float32 (inputs, segments * rank), and B of each slot, float32 (rank, outputs).

        ends: as `segments` gives them, or one for each slot. The rank is a multiple of `step`, and not 0.
        """
        found = {}
        for name, updates in self.updates.items():
            by_segment: list[list[Any]] = [[] for _ in ends[0]]
            for lora, parts in updates:
                number, start, _ = self._covered(parts)[0]
                by_segment[bisect_right(ends[number], start) if len(by_segment) > 1 else 0].append((lora, parts))
            widest = max(sum(lora.rank for lora, _ in segment) for segment in by_segment)
            rank = max(1, -(-widest // step)) * step
            # With the numbers in the order that the file of an adapter and the ops have, which is several times faster
            a = np.zeros((len(by_segment) * rank, self.slots[0].inputs), np.float32).T
            b = [np.zeros((slot.outputs, rank), np.float32).T for slot in self.slots]
            for number, segment in enumerate(by_segment):
                row = 0
                for lora, parts in segment:
                    rows, column = slice(row, row + lora.rank), number * rank + row
                    self._place(lora, parts, a[:, column : column + lora.rank], [m[rows] for m in b])
                    row += lora.rank
            found[name] = (a, b)
        return found


def fitted(matrix: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The matrix in a float type. Raises BadInput: a value that it cannot hold."""
    with np.errstate(over="ignore"):
        found = matrix.astype(dtype, copy=False)
    if not np.isfinite(found).all():
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
