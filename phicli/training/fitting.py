"""What is done with rows that are longer than a training row may be."""

from dataclasses import dataclass
from typing import NamedTuple

from phicli.text import Encoded


class Fitted(NamedTuple):
    """pieces: what there is to train on, each with a token that counts. long: whether the row was too long."""

    pieces: list[Encoded]
    long: bool


@dataclass(frozen=True)
class Fitting:
    """seq_len: the most tokens. too_long: "cut", "drop" or "split". mask_prompt: whether only answers count."""

    seq_len: int
    too_long: str = "cut"
    mask_prompt: bool = True

    def __call__(self, row: Encoded) -> Fitted:
        """The row as it is trained on."""
        row = row if self.mask_prompt else row.whole()
        long = len(row.ids) > self.seq_len
        if not long:
            pieces = [row]
        elif self.too_long == "split":
            pieces = _split(row, self.seq_len)
        else:
            pieces = [_cut(row, self.seq_len)] if self.too_long == "cut" else []
        return Fitted([piece for piece in pieces if piece.targets], long)


def _cut(row: Encoded, length: int) -> Encoded:
    """Its first tokens, and at their end the last one that counts, which ends a turn: stopping is learnt from it."""
    start = row.cut(length - 1)
    return Encoded(start.ids + [row.ids[row.targets[-1]]], start.mask + [True]) if start.targets else start


def _split(row: Encoded, length: int) -> list[Encoded]:
    """Pieces that overlap by one token, so that each token which counts is predicted in one of them."""
    return [Encoded(row.ids[at : at + length], row.mask[at : at + length])
            for at in range(0, len(row.ids) - 1, length - 1)]
