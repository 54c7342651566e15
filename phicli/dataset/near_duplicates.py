"""Rows that are nearly the same: MinHash over their words, in memory that does not grow with the file."""

import heapq
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

MAX_ROWS = 100_000
SIMILAR = 0.8  # Jaccard index of the sets of shingles from which two rows are nearly the same
SHINGLE = 5  # words; characters in scripts that have no blanks between words
BANDS, BAND = 21, 6  # rows of Jaccard index 0.8 share a band with probability 0.998, of 0.5 with 0.28
NO_LIMIT = 2**64 - 1
SIZE = BANDS * BAND  # 32-bit minima a row; the estimate's standard deviation at 0.8 is 0.036
CHARACTERS = 65_536  # of a text that are looked at

# Of Japanese, Chinese, Thai, Lao, Burmese and Khmer characters each counts as a word: they have no blanks between them.
_NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNIT = re.compile(f"[{_NO_BLANKS}]|[^\\W{_NO_BLANKS}]+")
_WORD = re.compile(r"\w+", re.ASCII)


class Sketches(NamedTuple):
    """Rows that may be compared. places: int64, where they stand. ranks: uint64. minima: uint32[rows, SIZE]."""

    places: np.ndarray
    ranks: np.ndarray
    minima: np.ndarray
    rows: int  # of which these are some


def rank(places: Sequence[int] | np.ndarray, seed: int = 0) -> np.ndarray:
    """uint64 for each place, as good as random (splitmix64): those under a limit are a sample of the rows."""
    mixed = np.asarray(places, np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def sketches(texts: Sequence[str], places: Sequence[int], below: int = NO_LIMIT, seed: int = 0) -> Sketches:
    """Of rows, what they say and where they stand; those of a rank from `below` on are left out."""
    ranks = rank(places, seed)
    kept = np.flatnonzero(ranks < np.uint64(min(below, NO_LIMIT)))
    minima = _minima([texts[at] for at in kept.tolist()])
    return Sketches(np.asarray(places, np.int64)[kept], ranks[kept], minima, len(texts))


class NearDuplicates:
    """Finds rows that are nearly the same as an earlier one; of many rows those of the lowest ranks are compared.

    Attributes:
        rows: rows seen. compared: those of them that are compared, all of them up to `max_rows`.
        below: the rank that a further row has to be under.
    """

    def __init__(self, max_rows: int = MAX_ROWS, seed: int = 0):
        self.rows, self.compared, self.below, self.seed = 0, 0, NO_LIMIT, seed
        self.lines = np.zeros(max_rows, np.int64)
        self.minima = np.empty((max_rows, SIZE), np.uint32)  # takes memory as rows come
        self._heap: list[tuple[int, int]] = []  # (-rank, slot): the first to make way is on top

    def add(self, texts: Sequence[str], lines: Sequence[int]) -> None:
        """Take rows: what they say, and where they stand. Exact duplicates are the caller's to leave out."""
        self.take(sketches(texts, lines, self.below, self.seed))

    def take(self, found: Sketches, kept: np.ndarray | None = None) -> None:
        """Take rows of which `kept` (bool) is true, or all of them."""
        self.rows += found.rows
        taken: dict[int, int] = {}  # slot -> index
        for at, value in enumerate(found.ranks.tolist()):
            if kept is not None and not kept[at]:
                continue
            if self.compared < len(self.lines):
                heapq.heappush(self._heap, (-value, slot := self.compared))
                self.compared += 1
            elif value < -self._heap[0][0]:
                slot = self._heap[0][1]
                heapq.heapreplace(self._heap, (-value, slot))
            else:
                continue
            taken[slot] = at
        if taken:
            self.lines[list(taken)] = found.places[list(taken.values())]
            self.minima[list(taken)] = found.minima[list(taken.values())]
        if self.compared == len(self.lines):
            self.below = -self._heap[0][0]

    def pairs(self) -> list[tuple[int, int]]:
        """(line, line of an earlier row that is nearly the same) for every row that has one, by line."""
        order = np.argsort(self.lines[: self.compared], kind="stable")
        kept = self.minima[order]
        earlier = _alike(kept, kept, np.arange(len(kept)))
        lines = self.lines[order]
        found = np.flatnonzero(earlier >= 0)
        return list(zip(lines[found].tolist(), lines[earlier[found]].tolist(), strict=True))

    def among(self, known: "NearDuplicates") -> np.ndarray:
        """bool[compared]: is a row nearly the same as a compared one of `known`? In the order of `lines`."""
        size = known.compared
        return _alike(known.minima[:size], self.minima[: self.compared], np.full(self.compared, size)) >= 0


def _alike(known: np.ndarray, asked: np.ndarray, before: np.ndarray) -> np.ndarray:
    """int64[asked]: which known row is nearly the same, of those with a number under `before`; -1 for none.

    Of the known rows with the same band only the first is compared, so that a file of rows that are all somewhat alike
    takes no longer.
    """
    found = np.full(len(asked), -1)
    for band in range(0, SIZE if len(known) else 0, BAND):
        keys, first = np.unique(_key(known, band), return_index=True)
        wanted = _key(asked, band)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        candidate = first[at]
        (open_,) = np.nonzero((found < 0) & (keys[at] == wanted) & (candidate < before))
        for part in np.array_split(open_, len(open_) // 8192 + 1):
            same = np.count_nonzero(known[candidate[part]] == asked[part], axis=1)
            near = part[same >= SIMILAR * SIZE]
            found[near] = candidate[near]
    return found


def _key(rows: np.ndarray, band: int) -> np.ndarray:
    """uint64[rows]: a hash of a band."""
    key = np.zeros(len(rows), np.uint64)
    for column in range(band, band + BAND):
        key = (key ^ rows[:, column]) * np.uint64(0x9E3779B97F4A7C15)
    return key


def _minima(texts: Iterable[str]) -> np.ndarray:
    """uint32[texts, SIZE]: of two, the share of equal columns estimates the Jaccard index of their shingles."""
    from rensa import RMinHash

    shingles = [_shingles(text) for text in texts]
    matrix = RMinHash.digest_matrix_from_token_sets(shingles, SIZE, 0)
    return np.array(matrix.to_rows(), np.uint32).reshape(-1, SIZE)


def _shingles(text: str) -> list[str]:
    text = text[:CHARACTERS].lower()
    words = (_WORD if text.isascii() else _UNIT).findall(text)
    if len(words) <= SHINGLE:
        return [" ".join(words)]
    return list(map(" ".join, zip(*(words[at:] for at in range(SHINGLE)), strict=False)))
