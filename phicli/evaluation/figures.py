"""From logits to perplexity, Kullback-Leibler divergence and top-1 agreement, in float64."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phicli.artifacts.stages import writing


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 [tokens, vocabulary] of logits of any float type."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


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
        reference = reference.astype(np.float64)
        self.positions += len(reference)
        # p (log p - log q) - p + q: the last two cancel in the sum but for the rounding of a stored reference, and
        # with them no term is negative
        p = np.exp(reference)
        self.kl_sum += float((p * (reference - log_probs) - p + np.exp(log_probs)).sum())
        self.same += int((reference.argmax(axis=-1) == log_probs.argmax(axis=-1)).sum())

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
