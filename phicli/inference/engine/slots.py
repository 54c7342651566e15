"""Places for the keys and values of rows, and what lies in them: rows that run, and beginnings kept for others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phicli.errors import Missing
from phicli.inference.engine.graph import CacheInput
from phicli.inference.engine.memory import LESS, Memory

SMALLEST = 256  # tokens that all slots have room for at first; doubled where a row needs more
WORTH = 16  # tokens from which on a beginning is copied rather than run again


@dataclass
class Slot:
    """A place by its number. tokens: whose keys and values are in it, with the adapter of that key. used: when it was
    last of use.
    """

    number: int
    adapter: int = 0
    tokens: list[int] = field(default_factory=list)
    used: int = 0

    def common(self, adapter: int, tokens: list[int]) -> int:
        """How many tokens at the beginning of these are in it."""
        if adapter != self.adapter:
            return 0
        same, differ = 0, min(len(self.tokens), len(tokens)) + 1
        while differ - same > 1:  # lists are compared faster than one token at a time
            middle = (same + differ) // 2
            if self.tokens[same:middle] == tokens[same:middle]:
                same = middle
            else:
                differ = middle
        return same


class Slots:
    """All slots of all layers.

    Args:
        running: places for rows that run, the first ones; a run takes all up to the last that is taken. kept: further
            ones, for beginnings of rows that have left. context: most tokens of one.
    """

    def __init__(self, caches: Sequence[CacheInput], running: int, kept: int, context: int, memory: Memory):
        from onnx import helper

        self._memory, self._context, self._caches = memory, context, caches
        self.dtypes = [np.dtype(helper.tensor_dtype_to_np_dtype(cache.elem_type)) for cache in caches]
        self.free = [Slot(number) for number in range(running)]
        self._count = running + kept
        self._kept = [Slot(number) for number in range(running, self._count)]
        self._clock = 0
        self.room = 0  # tokens that each slot has room for
        self._held: list[Any] = []
        self.all = [*self.free, *self._kept]
        self.grow(min(SMALLEST, context))

    @property
    def addresses(self) -> list[int]:
        """Where the memory of each cache begins."""
        return [self._memory.address(held) for held in self._held]

    def grow(self, tokens: int) -> bool:
        """Make room for so many tokens in each slot; whether anything has moved. Raises Missing: no memory;
        all is as it was.
        """
        if tokens <= self.room:
            return False
        room = max(self.room, SMALLEST)
        while room < tokens:
            room *= 2
        room = min(room, -(-self._context // 2) * 2)
        new: list[Any] = []
        try:
            for cache, dtype in zip(self._caches, self.dtypes, strict=True):
                new.append(self._memory.reserve((self._count, cache.heads, room, cache.size), dtype))
        except MemoryError:
            raise Missing(f"not enough memory for {self._count} times {room} tokens", hint=LESS) from None
        except Missing:
            for held in new:
                self._memory.free(held)
            raise
        for old, grown in zip(self._held, new, strict=False):
            for slot in self.all:
                self._memory.copy(old, grown, slot.number, slot.number, len(slot.tokens))
        self._memory.settle()
        for old in self._held:
            self._memory.free(old)
        self._held = new
        self.room = room
        return True

    def copy(self, source: Slot, target: Slot, tokens: int) -> None:
        """Copy the first tokens of a slot into another, which holds only them then."""
        for held in self._held:
            self._memory.copy(held, held, source.number, target.number, tokens)
        self._memory.settle()
        target.adapter, target.tokens = source.adapter, source.tokens[:tokens]

    def take(self, adapter: int, tokens: list[int], running: Iterable[Slot]) -> Slot:
        """A free slot, the first, with the longest beginning of `tokens` in it that any slot has.

        At least one token is left to run, since its logits are wanted.
        """
        slot = min(self.free, key=lambda free: free.number)
        self.free.remove(slot)
        slot.adapter, slot.tokens = adapter, []
        known = [(other.common(adapter, tokens), other) for other in (*running, *self._kept)]
        found, source = max(known, key=lambda pair: pair[0], default=(0, slot))
        found = min(found, len(tokens) - 1)
        if found >= WORTH:
            self._touch(source)
            self.copy(source, slot, found)
        return slot

    def leave(self, slot: Slot) -> None:
        """Free a slot; what is in it is kept, in place of what it continues, or of what was longest of no use."""
        if len(slot.tokens) >= WORTH and self._kept:
            best = max(self._kept, key=lambda kept: kept.common(slot.adapter, slot.tokens))
            common = best.common(slot.adapter, slot.tokens)
            if common < len(slot.tokens):
                target = best if 0 < common == len(best.tokens) else min(self._kept, key=lambda kept: kept.used)
                self.copy(slot, target, len(slot.tokens))
                best = target
            self._touch(best)
        slot.tokens = []
        self.free.append(slot)

    def move(self, source: Slot, target: Slot) -> None:
        """Let what is in a slot go on in a free one."""
        self.copy(source, target, len(source.tokens))
        self.free.remove(target)
        source.tokens = []
        self.free.append(source)

    def close(self) -> None:
        for held in self._held:
            self._memory.free(held)
        self._held = []

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock
