"""From logits to perplexity, Kullback-Leibler divergence and top-1 agreement, in float64."""

import functools
import math
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phicli.artifacts.stages import writing
from phicli.hardware.devices import usable_cores

PART = 1 << 17  # numbers that are worked on at once: in float64 they stay in a core's cache


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 [tokens, vocabulary] of logits of any float type."""
    found = np.empty(logits.shape)

    def fill(part: slice) -> None:
        shifted = np.subtract(logits[part], logits[part].max(axis=-1, keepdims=True), out=found[part], dtype=np.float64)
        shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    list(_threads().map(fill, _parts(logits)))
    return found


def _parts(rows: np.ndarray) -> list[slice]:
    """Of some tokens each; the same on every machine, so that sums are."""
    step = max(1, PART // rows.shape[1])
    return [slice(at, at + step) for at in range(0, len(rows), step)]


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cores(), thread_name_prefix="phicli-figures")


@dataclass
class Agreement:
    """How near a model's next-token distributions are to a reference's, over all positions added.

    kl: mean of KL(reference || model) in nats. top1: share of positions with the same likeliest token.
    """

    positions: int = 0
    kl_sum: float = 0.0
    same: int = 0

    def add(self, reference: np.ndarray, log_probs: np.ndarray) -> None:
        """Both log-probabilities [tokens, vocabulary]."""
        def compare(part: slice) -> tuple[float, int]:
            own, other = reference[part].astype(np.float64), log_probs[part]
            # p (log p - log q) - p + q: the last two cancel in the sum but for the rounding of a stored reference, and
            # with them no term is negative
            p = np.exp(own)
            same = own.argmax(axis=-1) == other.argmax(axis=-1)
            return float((p * (own - other) - p + np.exp(other)).sum()), int(same.sum())

        self.positions += len(reference)
        for kl, same in _threads().map(compare, _parts(reference)):
            self.kl_sum += kl
            self.same += same

    @property
    def kl(self) -> float:
        return self.kl_sum / self.positions

    @property
    def top1(self) -> float:
        return self.same / self.positions


@dataclass
class Likelihood:
    """Of the true tokens, over all positions added."""

    positions: int = 0
    nll_sum: float = 0.0

    def add(self, log_probs: np.ndarray, targets: Sequence[int]) -> None:
        """log_probs: [tokens, vocabulary], each the distribution of the target at its place."""
        self.positions += len(targets)
        self.nll_sum -= float(log_probs[np.arange(len(targets)), np.asarray(targets)].sum())

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood in nats."""
        return math.exp(min(self.nll_sum / self.positions, 700.0))


class LogProbFile:
    """Log-probabilities of a reference, row by row, in an unnamed temporary file: float32 [tokens, vocabulary].

    A reference and the models compared with it do not fit into memory together, and neither do all rows' log-probs:
    a vocabulary of 32,064 takes 128 kB a token. float16 would take half, but its rounding (0.004 nats at -10) would
    drown the differences below 1e-3 that are looked for. The file has no name, so nothing is left after a kill.
    """

    def __init__(self, folder: Path):
        with writing(folder):
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".evaluation-")  # noqa: SIM115 (closed by close)
        self._folder = folder
        self._shapes: list[tuple[int, int]] = []

    def add(self, log_probs: np.ndarray) -> None:
        with writing(self._folder):
            self._file.write(np.ascontiguousarray(log_probs, dtype=np.float32).data)
        self._shapes.append((log_probs.shape[0], log_probs.shape[1]))

    def __iter__(self) -> Iterator[np.ndarray]:
        self._file.seek(0)
        for shape in self._shapes:
            yield np.frombuffer(self._file.read(4 * shape[0] * shape[1]), dtype=np.float32).reshape(shape)

    def close(self) -> None:
        self._file.close()
