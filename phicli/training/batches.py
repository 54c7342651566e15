"""Which rows make up each step. They are encoded when their pool of batches is drawn."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from phicli.errors import BadInput
from phicli.text import Encoded
from phicli.training.rows import Rows

# Batches that are drawn together and sorted by length, so that rows of a batch need little padding: a quarter of an
# epoch, between these. Of rows of 7 to 1,024 tokens 11 % are padding in pools of 16 batches, 3 % in pools of 64.
SMALLEST_POOL, LARGEST_POOL = 16, 64


@dataclass(frozen=True)
class Batch:
    """rows: to train on, at least one. drawn: rows of the data; long: too long ones; left_out: nothing to learn."""

    rows: list[Encoded]
    drawn: int
    long: int
    left_out: int


class Order:
    """Numbers in a random order, another one each epoch."""

    def __init__(self, numbers: np.ndarray, seed: int):
        self.numbers, self.seed = numbers, seed
        self._epoch, self._order = -1, numbers

    def of(self, epoch: int) -> np.ndarray:
        """The order of an epoch."""
        if epoch != self._epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.numbers)
            self._epoch, self._order = epoch, order
        return self._order


def batches(rows: Rows, size: int, seed: int, first: int, last: int) -> Iterator[Batch]:
    """Batches number `first` to `last` - 1 of the endless sequence in which each row comes once an epoch.

    Those of a batch are of like length; rows with nothing to learn are spread evenly. Where the size does not divide
    the rows, batches are a row smaller, or of all rows there are. Skipped pools are not encoded.

    Raises:
        BadInput: no row of a pool has a token to learn.
    """
    order, count = Order(rows.train, seed), batches_an_epoch(len(rows.train), size)
    pool, number = pool_size(len(rows.train), size), first
    while number < last:
        epoch, at = divmod(number, count)
        drawn = draw_pool(rows, order, size, epoch, at // pool)[at % pool :]
        yield from drawn[: last - number]
        number += len(drawn)


def batches_an_epoch(rows: int, size: int) -> int:
    """How many batches all rows make."""
    return -(-rows // size)


def pool_size(rows: int, size: int) -> int:
    """Batches of a pool; fewer where an epoch ends."""
    return min(LARGEST_POOL, max(SMALLEST_POOL, rows // (4 * size)))


def draw_pool(rows: Rows, order: Order, size: int, epoch: int, number: int) -> list[Batch]:
    """The batches of one pool of an epoch, in a random order. Raises as `batches`."""
    whole, begin = batches_an_epoch(len(rows.train), size), number * pool_size(len(rows.train), size)
    pool = min(pool_size(len(rows.train), size), whole - begin)
    places = [at * len(rows.train) // whole for at in (begin, begin + pool)]
    drawn = order.of(epoch)[places[0] : places[1]]
    fitted = [rows.fitting(rows.source.encode(int(i))) for i in drawn]
    kept = sorted((one for one in fitted if one.pieces), key=lambda one: len(one.pieces[0].ids))
    if not kept:
        raise BadInput(f"no row has a token to learn within {rows.fitting.seq_len} tokens (looked at {len(drawn)})",
                       hint="--seq-len, --too-long split, or --no-mask-prompt")
    kept_long, all_long = (sum(one.long for one in some) for some in (kept, fitted))
    useless_long = _shares(all_long - kept_long, pool)
    if len(kept) < pool:  # every step has something to learn
        kept = [kept[i * len(kept) // pool] for i in range(pool)]
    found, at = [], 0
    sizes = _shares(len(drawn), pool)
    for size_here, share, useless in zip(sizes, _shares(len(kept), pool), useless_long, strict=True):
        part, at = kept[at : at + share], at + share
        pieces = sorted((piece for one in part for piece in one.pieces), key=lambda piece: len(piece.ids))
        found.append(Batch(pieces, size_here, sum(one.long for one in part) + useless, max(0, size_here - share)))
    return [found[i] for i in np.random.default_rng([order.seed, epoch, number, 1]).permutation(pool)]


def _shares(total: int, parts: int) -> list[int]:
    """A total in parts that differ by one at most."""
    return [total // parts + (i < total % parts) for i in range(parts)]
