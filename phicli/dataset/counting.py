"""Exact figures about many rows in little memory."""

from collections import Counter
from collections.abc import Iterable

import numpy as np


class Histogram:
    """How often each length occurs: exact percentiles, and memory for the distinct lengths only."""

    def __init__(self, lengths: Iterable[int] = ()) -> None:
        self.counts: Counter[int] = Counter(lengths)

    def add(self, lengths: Iterable[int]) -> None:
        self.counts.update(lengths)

    @property
    def total(self) -> int:
        return sum(length * n for length, n in self.counts.items())

    def quantile(self, share: float) -> int:
        """The smallest length that at least this share of the rows does not exceed; 0 without rows."""
        wanted, seen = share * self.counts.total(), 0
        for length in sorted(self.counts):
            seen += self.counts[length]
            if seen >= wanted:
                return length
        return 0

    def above(self, limit: float) -> int:
        """How many are greater than the limit."""
        return sum(n for length, n in self.counts.items() if length > limit)

    def figures(self) -> dict[str, float] | None:
        """min, mean, p95 and max; None without rows."""
        if not self.counts:
            return None
        return {"min": min(self.counts), "mean": round(self.total / self.counts.total(), 1),
                "p95": self.quantile(0.95), "max": max(self.counts)}


class SeenBefore:
    """A set of 64-bit hashes, 8 bytes each, for batches.

    Sorted runs whose lengths grow geometrically (a log-structured merge), so that a batch is looked up in few of them.
    Among 100 million rows the chance that any two differing ones share a hash is 1 in 3,700.
    """

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Put uint64[n] in; bool[n] says which were there before, in the set or earlier in the batch."""
        unique, first = np.unique(hashes, return_index=True)
        repeated = np.ones(len(hashes), bool)
        repeated[first] = False
        for run in self.runs:
            at = np.searchsorted(run, hashes)
            repeated |= run[np.minimum(at, len(run) - 1)] == hashes
        fresh = unique[~repeated[first]]
        if len(fresh):
            self.runs.append(fresh)
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            last = self.runs.pop()
            self.runs[-1] = np.sort(np.concatenate([self.runs[-1], last]), kind="stable")  # merges sorted runs
        return repeated
