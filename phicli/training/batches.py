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
    """Numbers in an endless random order, in which each comes once an epoch."""

    def __init__(self, numbers: np.ndarray, seed: int):
        self.numbers, self.seed = numbers, seed
        self._epoch, self._order = -1, numbers

    def take(self, begin: int, count: int) -> np.ndarray:
        """Those at the places from `begin` on."""
        parts = []
        while count:
            epoch, at = divmod(begin, len(self.numbers))
            if epoch != self._epoch:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.numbers)
                self._epoch, self._order = epoch, order
            parts.append(self._order[at : at + count])
            begin, count = begin + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)


def batches(rows: Rows, size: int, seed: int, first: int, last: int) -> Iterator[Batch]:
    """Batches number `first` to `last` - 1 of the endless sequence in which rows come once an epoch.

    Those of a batch are of like length; rows with nothing to learn are spread evenly. Skipped pools are not encoded.

    Raises:
        BadInput: no row of a pool has a token to learn.
    """
    order, pool = Order(rows.train, seed), pool_size(len(rows.train), size)
    for number in range(first // pool, -(-last // pool)):
        drawn = draw_pool(rows, order, size, number)
        yield from drawn[max(0, first - number * pool) : last - number * pool]


def pool_size(rows: int, size: int) -> int:
    """Batches of a pool."""
    return min(LARGEST_POOL, max(SMALLEST_POOL, rows // (4 * size)))


def draw_pool(rows: Rows, order: Order, size: int, number: int) -> list[Batch]:
    """The batches of one pool, in a random order. Raises as `batches`."""
    pool = pool_size(len(rows.train), size)
    drawn = order.take(number * size * pool, size * pool)
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
    for share, useless in zip(_shares(len(kept), pool), useless_long, strict=True):
        part, at = kept[at : at + share], at + share
        pieces = sorted((piece for one in part for piece in one.pieces), key=lambda piece: len(piece.ids))
        found.append(Batch(pieces, size, sum(one.long for one in part) + useless, max(0, size - share)))
    return [found[i] for i in np.random.default_rng([order.seed, number, 1]).permutation(pool)]


def _shares(total: int, parts: int) -> list[int]:
    """A total in parts that differ by one at most."""
    return [total // parts + (i < total % parts) for i in range(parts)]
