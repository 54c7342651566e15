"""A row as token ids, with the tokens marked that a model learns to say."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row, and for each of them whether the loss counts it."""

    ids: list[int]
    mask: list[bool]

    @classmethod
    def counted_from(cls, ids: Sequence[int], start: int) -> "Encoded":
        """A row whose tokens count from a position on."""
        return cls(list(ids), [at >= start for at in range(len(ids))])

    @cached_property
    def targets(self) -> list[int]:
        """Positions of the tokens that count; never the first, which nothing predicts."""
        return [at for at, counts in enumerate(self.mask) if counts and at]

    def whole(self) -> "Encoded":
        """The same row with every token counted."""
        return Encoded(self.ids, [True] * len(self.ids))

    def cut(self, length: int) -> "Encoded":
        """Its first tokens."""
        return self if len(self.ids) <= length else Encoded(self.ids[:length], self.mask[:length])
