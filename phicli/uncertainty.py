"""How sure a figure is: bootstrap over rows (Efron, 1979), paired where two stages saw the same rows."""

from collections.abc import Callable

import numpy as np

MOST_BLOCKS, RESAMPLES, FEWEST = 1000, 2000, 8  # fewer rows say nothing of how rows differ
LEVEL = 95  # per cent of an interval
Interval = tuple[float, float]


def in_blocks(values: np.ndarray) -> np.ndarray:
    """Sums of consecutive rows, float64 [blocks]: each row by itself, or at most `MOST_BLOCKS` equal parts of many."""
    step = -(-len(values) // MOST_BLOCKS)
    return np.add.reduceat(np.asarray(values, np.float64), np.arange(0, len(values), step))


def interval(samples: np.ndarray) -> Interval:
    """The middle `LEVEL` per cent."""
    low, high = np.percentile(samples, (50 - LEVEL / 2, 50 + LEVEL / 2))
    return float(low), float(high)


class Resamples:
    """The same random choices of blocks, with replacement, for every figure, so that differences are paired.

    Args:
        tokens: float [blocks], by which sums are divided. seed: of the choices.
    """

    def __init__(self, tokens: np.ndarray, seed: int = 0):
        blocks = len(tokens)
        rng = np.random.default_rng(seed)
        self.enough = blocks >= FEWEST
        self._counts = rng.multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES).astype(np.float32)
        self._tokens = self._counts @ tokens

    def means(self, sums: np.ndarray) -> np.ndarray:
        """The mean a token in each resample, float64 [resamples]. sums: [blocks]."""
        return np.asarray(self._counts @ sums / self._tokens, np.float64)

    def interval(self, sums: np.ndarray, figure: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Interval | None:
        """Of a figure of the mean a token; None where there are too few rows."""
        return interval(figure(self.means(sums))) if self.enough else None


def ratio_of_medians(new: np.ndarray, old: np.ndarray, seed: int = 0) -> tuple[float, Interval]:
    """How many times as large the new samples are, by their medians, and how sure that is; samples are not paired."""
    rng = np.random.default_rng(seed)
    drawn = [np.median(rng.choice(samples, (RESAMPLES, len(samples))), axis=1) for samples in (new, old)]
    return float(np.median(new) / np.median(old)), interval(drawn[0] / drawn[1])
