"""Rows that share their runs: one onnxruntime session, and slots in which it keeps the keys and values of all."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from phicli.errors import Missing
from phicli.export.fused import ID
from phicli.inference.engine.adapters import RANKS, AdapterSet
from phicli.inference.engine.graph import BEST, LAST, LENGTHS, LONGEST
from phicli.inference.engine.memory import MEMORIES, CpuMemory, Memory
from phicli.inference.engine.opening import Served
from phicli.inference.engine.row import Row, Scores
from phicli.inference.engine.run import PLAIN, Run, Shape
from phicli.inference.engine.slots import Slots
from phicli.inference.engine.speculation import SIZES, size_of

FIRST_STEPS = 8  # with the same adapters, before they become a CUDA graph
MOST_GRAPHS = 64  # onnxruntime keeps all that it ever captured


class Batch:
    """What `Rows` asks, for all rows in one run.

    Args:
        slots: rows that run at once. keep: whether beginnings of rows are kept for others. fixed: each step runs as
            many rows as there can be, with the longest attention: what a row gets rounds the same alone as beside
            others, where products of other sizes round differently.
    """

    def __init__(self, served: Served, slots: int, keep: bool, fixed: bool):
        self.session: Any = served.session
        self.memory: Memory = MEMORIES[served.provider]()
        self.apart = self.memory.apart
        session = self.session
        self.inputs, self.outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
        self.tokens = self.inputs[0]
        self.dtype = np.float16 if "float16" in session.get_outputs()[0].type else np.float32
        self.vocab_size: int = session.get_outputs()[0].shape[-1]
        self.caches = served.caches
        self.held: dict[str, tuple[Memory, Any, np.ndarray]] = {}  # matrices of adapters
        self._adapters, self._set = served.adapters, AdapterSet({n: n for n in range(1, len(served.names) + 1)}, {})
        self._even = self.memory.even and not served.exact
        slots += slots % 2 if self._even else 0
        kept = max(2, round(slots * self.memory.kept)) if keep else 0
        self.slots = Slots(self.caches, slots, kept, served.context, self.memory)
        self._fixed = slots if fixed else 0
        if fixed:
            self.slots.grow(served.context)
        self._runs: dict[Shape, Run] = {}
        self._captures = served.captures
        self.warming = FIRST_STEPS + 3 if served.captures else 0  # onnxruntime's own first run, and the capture
        self.alters = served.alters
        self._steps: dict[Shape, tuple[list[int], int]] = {}  # adapters of the last one, and how many had them
        self._graphs: dict[tuple[int, ...], int] = {}  # shape and adapters of a step -> its CUDA graph
        self._captured = 0
        self._rows: dict[int, Row] = {}  # by number of slot: all that have one

    def place(self, row: Row) -> None:
        self._make_room(len(row.tokens))
        row.place = self.slots.take(row.adapter, row.tokens, (other.place for other in self._rows.values()))
        row.ran = row.cached = len(row.place.tokens)
        self._rows[row.place.number] = row

    def prefill(self, row: Row) -> np.ndarray:
        tokens = row.tokens[row.ran : row.ran + self.memory.chunk]
        padded = len(tokens) + (len(tokens) % 2 if self.memory.even else 0)
        self._make_room(row.ran + padded)
        run = self._run((1, row.place.number, padded, 1))
        values = run.values
        values[self.tokens][0, : len(tokens)] = tokens
        values[LENGTHS][0] = row.ran + padded - 1
        values[LONGEST][...] = row.ran + padded
        values[LAST][0] = len(tokens) - 1
        self._set_adapters(run, [row])
        run.run(True)
        self._ran(row, tokens)
        return run.logits[0, 0].astype(np.float32, copy=False)

    def step(self, rows: Sequence[Row]) -> Sequence[Scores]:
        try:
            self._make_room(max(len(row.tokens) for row in rows))
        except Missing as e:  # for the longest
            there = [row for row in rows if len(row.tokens) < self.slots.room]
            found = iter(self.step(there) if there else ())
            return [next(found) if row in there else e for row in rows]
        self._close_ranks(rows)
        count = self._fixed or max(row.place.number for row in rows) + 1
        count += count % 2 if self._even else 0
        run = self._run((count, 0, 1, 1))
        values, at = run.values, {row.place.number: row for row in rows}
        for number in range(count):  # a slot between rows that run gets a token too, behind what is in it
            values[LENGTHS][number] = len(self.slots.all[number].tokens)
            values[self.tokens][number, 0] = at[number].tokens[-1] if number in at else 0
        self._set_adapters(run, [at.get(number) for number in range(count)])
        graph = self._graph_of((count, 0, 1, 1), run)
        steady = self._fixed or graph != PLAIN
        values[LONGEST][...] = self.slots.room if steady else values[LENGTHS].max() + 1
        fetch = BEST not in self.outputs or not all(row.greedy for row in rows)
        run.run(fetch, graph)
        for row in rows:
            self._ran(row, row.tokens[-1:])
        if not fetch:
            return [int(run.best[row.place.number, 0]) for row in rows]
        return [run.logits[row.place.number, 0].astype(np.float32, copy=False) for row in rows]

    def prove(self, row: Row, guess: Sequence[int]) -> Sequence[Scores]:
        size = size_of(guess)
        self._make_room(row.ran + size)
        self._close_ranks([row])
        shape = 1, row.place.number, size, size
        run = self._run(shape)
        values, tokens = run.values, [row.tokens[-1], *guess]
        values[self.tokens][0] = tokens + [0] * (size - len(tokens))
        values[LENGTHS][0] = row.ran + size - 1
        self._set_adapters(run, [row])
        graph = self._graph_of(shape, run)
        values[LONGEST][...] = self.slots.room if graph != PLAIN else row.ran + size
        fetch = BEST not in self.outputs or not row.greedy
        run.run(fetch, graph)
        self._ran(row, tokens[:1])
        if not fetch:
            return [int(token) for token in run.best[0, : len(tokens)]]
        return list(run.logits[0, : len(tokens)].astype(np.float32, copy=False))

    def settle(self, row: Row) -> None:
        self._ran(row, row.tokens[row.ran : -1])

    def leave(self, row: Row) -> None:
        if row.place is not None:
            del self._rows[row.place.number]
            self.slots.leave(row.place)

    def close(self) -> None:
        self._forget_runs()
        self.slots.close()
        for memory, place, _ in self.held.values():
            memory.free(place)
        self.held, self.session = {}, None

    def _run(self, shape: Shape) -> Run:
        """The run of this shape, which is kept where it comes again and again."""
        self._adopt()
        run = self._runs.get(shape) or Run(self, *shape)
        if shape[2] in (1, *SIZES, self.memory.chunk):
            self._runs[shape] = run
        return run

    def _graph_of(self, shape: Shape, run: Run) -> int:
        """The CUDA graph of a step of this shape and these adapters, once there were some: capturing takes time."""
        adapters = run.values[ID].tolist() if ID in run.values else []
        key = *shape, *adapters
        if not self._captures or key in self._graphs or self._captured == MOST_GRAPHS:
            return self._graphs.get(key, PLAIN)
        before, steps = self._steps.get(shape, (adapters, 0))
        steps = steps + 1 if before == adapters else 1  # only a batch that stays is worth capturing
        self._steps[shape] = adapters, steps
        if steps > FIRST_STEPS:
            self._captured += 1
            self._graphs[key] = self._captured
        return self._graphs.get(key, PLAIN)

    def _forget_runs(self) -> None:
        """Keys and values, or adapters, lie elsewhere from now on."""
        self._runs.clear()
        self._graphs.clear()

    def _adopt(self) -> None:
        """Take the adapters that there are now, where others came or went since the last run."""
        new = self._adapters.current if self._adapters else self._set
        if new is self._set:
            return
        held, self.held = self.held, {}
        for name, value in new.inputs.items():
            memory: Memory = CpuMemory() if name == RANKS else self.memory
            self.held[name] = memory, memory.upload(value), value
        self._forget_runs()
        for memory, place, _ in held.values():
            memory.free(place)
        self._set = new

    def _set_adapters(self, run: Run, rows: Sequence[Row | None]) -> None:
        if ID in run.values:
            run.values[ID][:] = [self._set.numbers.get(row.adapter, 0) if row else 0 for row in rows]

    def _ran(self, row: Row, tokens: Sequence[int]) -> None:
        row.ran += len(tokens)
        row.place.tokens += tokens

    def _make_room(self, tokens: int) -> None:
        """For so many tokens in all, and one behind them."""
        if self.slots.grow(tokens + 1):
            self._forget_runs()

    def _close_ranks(self, rows: Sequence[Row]) -> None:
        """Let the last row that runs take the first free place before it."""
        last = max(rows, key=lambda row: row.place.number)
        hole = min(self.slots.free, key=lambda slot: slot.number, default=None)
        if hole is not None and hole.number < last.place.number:
            del self._rows[last.place.number]
            self.slots.move(last.place, hole)
            last.place = hole
            self._rows[hole.number] = last
