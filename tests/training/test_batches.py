"""The order of rows: each once an epoch, of like length in a batch, encoded only when they are drawn."""

import sys
import tracemalloc
from itertools import islice
from time import monotonic

import numpy as np
import pytest

from phicli.errors import BadInput
from phicli.text import Encoded
from phicli.training.batches import LARGEST_POOL, Order, batches, pool_size
from phicli.training.batches import SMALLEST_POOL as POOL
from phicli.training.fitting import Fitting
from phicli.training.rows import prepare_rows


class Counting:
    """Rows whose first token is their number, of these lengths; remembers which were encoded."""

    def __init__(self, lengths, useless=()):
        self.lengths, self.useless, self.encoded = lengths, set(useless), []

    def __len__(self):
        return len(self.lengths)

    def encode(self, number):
        self.encoded.append(number)
        length = self.lengths[number]
        return Encoded([number] * length, [False] * length if number in self.useless else [True] * length)

    def keys(self):
        return np.arange(len(self), dtype=np.uint64)


def drawn(source, size=8, seed=3, first=0, last=80, fitting=None):
    return list(batches(prepare_rows(source, fitting or Fitting(1000)), size, seed, first, last))


def numbers(found):
    return [[row.ids[0] for row in batch.rows] for batch in found]


LENGTHS = [(7 * i) % 100 + 2 for i in range(160)]


def test_rows_come_equally_often_and_like_lengths_are_together():
    first = numbers(drawn(Counting(LENGTHS)))  # four epochs, each of two pools
    assert first == numbers(drawn(Counting(LENGTHS))) != numbers(drawn(Counting(LENGTHS), seed=4))
    for epoch in range(4):
        assert sorted(row for batch in first[20 * epoch : 20 * epoch + 20] for row in batch) == list(range(160))
    spread = [max(LENGTHS[r] for r in batch) - min(LENGTHS[r] for r in batch) for batch in first]
    assert sum(spread) / len(spread) < 15  # 78 for batches of rows sampled at random


@pytest.mark.parametrize(("count", "sizes"), [(3, [3]), (8, [8]), (18, [6, 6, 6]), (20, [7, 7, 6]), (40, [8] * 5)])
def test_an_epoch_of_few_rows_has_each_of_them_once(count, sizes):
    found = numbers(drawn(Counting(LENGTHS[:count]), last=3 * len(sizes)))
    for epoch in range(3):
        some = found[epoch * len(sizes) : (epoch + 1) * len(sizes)]
        assert sorted(row for batch in some for row in batch) == list(range(count))
        assert sorted(map(len, some), reverse=True) == sizes


@pytest.mark.parametrize("first", [1, 15, 16, 37])
def test_going_on_gives_the_same_batches_and_encodes_none_of_those_before(first):
    whole, rest = Counting(LENGTHS), Counting(LENGTHS)
    assert numbers(drawn(whole))[first:] == numbers(drawn(rest, first=first))
    begin = first // 20 * 20 + first % 20 // POOL * POOL  # of the pool
    assert len(rest.encoded) == (80 - begin) * 8
    assert drawn(Counting(LENGTHS), first=80) == []


def test_only_what_is_needed_is_encoded():
    source = Counting(LENGTHS * 100)
    coming = batches(prepare_rows(source, Fitting(1000)), 8, 0, 0, 1000)
    assert len(list(islice(coming, 3))) == 3
    assert len(set(source.encoded)) == len(source.encoded) == LARGEST_POOL * 8


def test_large_data_has_larger_pools_and_less_padding():
    assert [pool_size(rows, 8) for rows in (10, 360, 1024, 10_000_000)] == [16, 16, 32, 64]
    draw = np.random.default_rng(0)
    lengths = np.minimum(1024, draw.lognormal(5, 1.2, 2048).astype(int) + 5).tolist()
    found = drawn(Counting(lengths), last=256, fitting=Fitting(1024))  # an epoch
    assert sorted(row for batch in numbers(found) for row in batch) == list(range(2048))
    padded = sum(max(len(row.ids) for row in batch.rows) * 8 for batch in found)
    assert sum(lengths) > 0.96 * padded


def test_rows_with_nothing_to_learn_are_spread_and_counted():
    useless = range(0, 160, 4)
    found = drawn(Counting(LENGTHS, useless), last=POOL)
    assert not {row for batch in numbers(found) for row in batch} & set(useless)
    assert {len(batch.rows) for batch in found} <= {5, 6, 7}
    assert all(batch.drawn == 8 == len(batch.rows) + batch.left_out for batch in found)


def test_long_rows_are_counted_whatever_becomes_of_them():
    lengths = [10] * 120 + [40] * 40
    for too_long, left_out, pieces in (("cut", 0, 640), ("drop", 160, 480), ("split", 0, 800)):
        found = drawn(Counting(lengths), fitting=Fitting(25, too_long))  # 80 batches of 8: each row four times
        assert [sum(getattr(b, name) for b in found) for name in ("drawn", "long", "left_out")] == [640, 160, left_out]
        assert sum(len(b.rows) for b in found) == pieces
        assert max(len(row.ids) for b in found for row in b.rows) <= 25


def test_one_useful_row_among_many_is_enough_for_every_step():
    found = drawn(Counting([5] * 20, useless=range(1, 20)), last=POOL)
    assert all(set(batch) == {0} for batch in numbers(found))
    with pytest.raises(BadInput, match="no row has a token to learn"):
        drawn(Counting([5] * 20, useless=range(20)), last=1)


def test_ten_million_rows_take_little_time_and_memory():
    tracemalloc.start()
    order, begun = Order(np.arange(10_000_000, dtype=np.int32), 0), monotonic()
    assert order.of(0)[:20].tolist() != order.of(1)[:20].tolist()
    assert monotonic() - begun < 20
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()
    assert sys.getsizeof(order) < 1000
