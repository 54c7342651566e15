"""Rows of one file that another file has too: what is held out must not be in what is trained."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from phicli.dataset.near_duplicates import MAX_ROWS, NearDuplicates
from phicli.dataset.understood import Understood, row_hash


@dataclass(frozen=True)
class Overlap:
    """rows: held-out ones. exact: those that the training rows have too, blanks around them aside. near: others of them
    that are nearly the same as a training row, of `compared` held-out rows and `train_compared` training rows."""

    rows: int
    exact: int
    near: int
    compared: int
    train_compared: int


Batches = Iterable[Sequence[Understood]]


class HeldOut:
    """Held-out rows, in batches, to be compared with others. Memory: 8 bytes a row, 0.5 KB a compared one."""

    def __init__(self, batches: Batches, max_rows: int = MAX_ROWS):
        self.near, hashes = NearDuplicates(max_rows), [np.empty(0, np.uint64)]
        for batch in batches:
            hashes.append(_hashes(batch))
            self.near.add(_texts(batch), range(self.near.rows, self.near.rows + len(batch)))
        self.hashes = np.concatenate(hashes)
        self.unique, self._rows_of = np.unique(self.hashes, return_inverse=True)
        self.seen = np.zeros(len(self.unique), bool)

    def see(self, hashes: np.ndarray) -> None:
        """Note which held-out rows are among these; uint64, see `row_hash`."""
        if len(self.unique):
            at = np.searchsorted(self.unique, hashes)
            self.seen[at[self.unique.take(at, mode="clip") == hashes]] = True

    def overlap(self, trained: NearDuplicates) -> Overlap:
        """With the rows that were seen; `trained`: a sample of them."""
        known = np.isin(self.hashes[self.near.lines[: self.near.compared]], self.unique[self.seen])
        near = self.near.among(trained) & ~known
        return Overlap(len(self.hashes), int(self.seen[self._rows_of].sum()), int(near.sum()), self.near.compared,
                       trained.compared)


def overlap(train: Batches, held_out: Batches, max_rows: int = MAX_ROWS) -> Overlap:
    """Compare two files, each as batches of rows."""
    held, trained = HeldOut(held_out, max_rows), NearDuplicates(max_rows)
    for batch in train if len(held.unique) else ():
        held.see(_hashes(batch))
        trained.add(_texts(batch), range(trained.rows, trained.rows + len(batch)))
    return held.overlap(trained)


def _hashes(rows: Sequence[Understood]) -> np.ndarray:
    return np.array([row_hash(row) for row in rows], np.uint64)


def _texts(rows: Sequence[Understood]) -> list[str]:
    return ["\n".join(text for _, text in row.texts) for row in rows]
