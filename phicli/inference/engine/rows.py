"""What a scheduler asks of the model that runs its rows."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from phicli.inference.engine.row import Row, Scores


class Rows(Protocol):
    """Keys and values of rows, and the runs that bring them forward. One thread uses it.

    apart: whether a run leaves the processor free, so that clients can be told meanwhile.
    """

    apart: bool

    def place(self, row: Row) -> None:
        """Reserve what a row needs; sets `place`, and `ran` and `cached` where a beginning is there already.

        Raises:
            PhicliError: no memory, or an adapter that is gone.
        """

    def prefill(self, row: Row) -> np.ndarray:
        """Run the next part of a row's prompt; logits after its last token, float32 [vocabulary]."""

    def step(self, rows: Sequence[Row]) -> Sequence[Scores]:
        """Run the last token of each row; the scores of each."""

    def leave(self, row: Row) -> None:
        """Give back what a row has."""

    def close(self) -> None:
        """Give all memory back."""


class ProvingRows(Rows, Protocol):
    """Rows that also run tokens that are only guessed.

    warming: runs of a shape that take longer than all later ones. alters: whether scores round otherwise than those of
    `step`, which are the same whatever runs beside a row.
    """

    warming: int
    alters: bool

    def prove(self, row: Row, guess: Sequence[int]) -> Sequence[Scores]:
        """Run the last token of a row and a guess of what comes after it; the scores after each of them."""

    def settle(self, row: Row) -> None:
        """Keep what has run of a row's tokens, now that those after `prove` are drawn."""
