"""Intervals against what is known of the distribution that the rows are drawn from."""

import numpy as np

from phicli.uncertainty import MOST_BLOCKS, Resamples, in_blocks, ratio_of_medians


def test_an_interval_covers_the_true_mean_as_often_as_it_says():
    rng, inside = np.random.default_rng(1), 0
    for _ in range(100):
        tokens = rng.integers(5, 40, 60).astype(float)
        low, high = Resamples(tokens).interval(tokens * 2.0 + rng.normal(0, 10, 60))
        inside += low <= 2.0 <= high
    assert 86 < inside < 100


def test_pairs_show_what_single_intervals_hide():
    rng = np.random.default_rng(2)
    tokens, first = np.full(80, 10.0), rng.normal(30, 8, 80)
    second = first + 0.5 + rng.normal(0, 0.2, 80)
    resamples = Resamples(tokens)
    one, other, change = (resamples.interval(sums) for sums in (first, second, second - first))
    assert one[1] > other[0] and 0.03 < change[0] < 0.05 < change[1] < 0.07


def test_many_rows_are_taken_in_blocks():
    values = np.arange(2 * MOST_BLOCKS + 1, dtype=float)
    assert len(in_blocks(values)) <= MOST_BLOCKS and in_blocks(values).sum() == values.sum()
    np.testing.assert_array_equal(in_blocks(values[:7]), values[:7])
    assert Resamples(np.ones(3)).interval(np.ones(3)) is None


def test_a_ratio_of_two_sets_of_samples():
    rng = np.random.default_rng(3)
    ratio, (low, high) = ratio_of_medians(rng.normal(120, 3, 15), rng.normal(100, 3, 15))
    assert 1.15 < ratio < 1.25 and low < ratio < high and low > 1.1
    assert ratio_of_medians(np.array([5.0]), np.array([4.0])) == (1.25, (1.25, 1.25))
