"""Histogram and hash set against plain references."""

import random

import numpy as np
import pytest

from phicli.dataset.counting import Histogram, SeenBefore


@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 1000])
def test_figures_equal_those_of_the_sorted_list(n):
    lengths = random.Random(n).choices(range(300), k=n)
    histogram = Histogram()
    for at in range(0, n, 7):
        histogram.add(lengths[at : at + 7])
    figures = histogram.figures()
    assert figures["min"] == min(lengths) and figures["max"] == max(lengths)
    assert figures["mean"] == round(sum(lengths) / n, 1)
    assert figures["p95"] == np.percentile(lengths, 95, method="inverted_cdf")
    assert histogram.above(150) == sum(length > 150 for length in lengths)
    assert histogram.total == sum(lengths)


def test_no_rows_no_figures():
    assert Histogram().figures() is None


def test_seen_before_equals_a_set():
    draw = random.Random(0)
    seen, reference = SeenBefore(), set()
    for _ in range(300):
        batch = [draw.randrange(20_000) << 45 for _ in range(draw.randrange(90))]
        expected = []
        for value in batch:
            expected.append(value in reference)
            reference.add(value)
        assert seen.add(np.array(batch, np.uint64)).tolist() == expected
    assert sum(map(len, seen.runs)) == len(reference)
    assert len(seen.runs) < 12
    assert sum(run.nbytes for run in seen.runs) == 8 * len(reference)
