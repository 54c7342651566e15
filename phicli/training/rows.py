"""Where training rows come from, as token ids, and which of them are held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from phicli.dataset.encoding import RowEncoder
from phicli.dataset.table import Table
from phicli.errors import BadInput
from phicli.text import Encoded
from phicli.training.fitting import Fitting

HELD_OUT_MOST = 500  # rows: their loss is known to some 2 %, and measuring it takes no longer than 20 steps


class RowSource(Protocol):
    """Rows by number, encoded when they are asked for; nothing is kept."""

    def __len__(self) -> int: ...

    def encode(self, number: int) -> Encoded: ...

    def keys(self) -> np.ndarray:
        """uint64 (rows,): a hash of what a row asks, equal for rows that ask the same."""


@dataclass(frozen=True)
class EncodedRows:
    """Rows that are token ids already; what stands before the first token that counts is what a row asks."""

    rows: Sequence[Encoded]

    def __len__(self) -> int:
        return len(self.rows)

    def encode(self, number: int) -> Encoded:
        return self.rows[number]

    def keys(self) -> np.ndarray:
        asked = (np.array(row.ids[: next(iter(row.targets), None)]).tobytes() for row in self.rows)
        return np.array([int.from_bytes(hashlib.blake2b(one, digest_size=8).digest()) for one in asked], np.uint64)


@dataclass(frozen=True)
class TableRows:
    """Rows of files, read and encoded when they are asked for.

    refused: why rows could not be encoded, each once; such a row has no token.
    """

    table: Table
    encoder: RowEncoder
    refused: dict[int, BadInput] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def encode(self, number: int) -> Encoded:
        try:
            return self.table.encode(number, self.encoder)
        except BadInput as e:
            self.refused[number] = e
            return Encoded([], [])

    def keys(self) -> np.ndarray:
        return self.table.keys()


@dataclass(frozen=True)
class Rows:
    """What a run trains on and is measured by.

    train: int32 (rows,), numbers of the source's rows to train on. held_out: each has a token that counts. fitting:
    what is done with a row of the source before it is trained on.
    """

    source: RowSource
    train: np.ndarray
    held_out: list[Encoded]
    fitting: Fitting


def prepare_rows(source: RowSource, fitting: Fitting, *, eval_split: float = 0.0, seed: int = 0,
                 eval_source: RowSource | None = None) -> Rows:
    """Hold out a share of the rows, chosen by the seed from what rows ask, or take those of another source.

    At most HELD_OUT_MOST rows are held out, and at least one if `eval_split` is over 0.

    Raises:
        BadInput: no row left to train on, or nothing to learn in any held-out row.
    """
    train = np.ones(len(source), bool)
    judges, numbers = source, np.zeros(0, int)
    if eval_source is not None:
        judges, numbers = eval_source, choose_rows(eval_source.keys(), len(eval_source), seed)
    elif eval_split:
        numbers = choose_rows(source.keys(), max(1, round(eval_split * len(source))), seed)
        train[numbers] = False
    if not train.any():
        raise BadInput(f"all rows ask the same ({len(source)}), and are held out: none left to train on",
                       hint="--eval-split 0, or --eval-data with other rows")
    held_out = [piece for number in numbers for piece in fitting(judges.encode(int(number))).pieces]
    if len(numbers) and not held_out:
        raise BadInput(f"no row of those held out has a token to learn within {fitting.seq_len} tokens",
                       hint="--seq-len, --too-long split, or --eval-split 0")
    return Rows(source, np.flatnonzero(train).astype(np.int32), held_out, fitting)


def choose_rows(keys: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """Numbers of about `wanted` rows, at most HELD_OUT_MOST: whole groups of one key, in an order that the seed gives.

    The choice depends on the keys alone, not on the order of the rows.
    """
    wanted = min(wanted, HELD_OUT_MOST)
    places = _mixed(keys, seed)
    near = 4 * wanted  # of the rows with the smallest places, which are all that has to be looked at as a rule
    while True:
        bound = np.partition(places, near)[near] if near < len(places) else places.max()
        low = np.flatnonzero(places <= bound)
        groups, sizes = np.unique(places[low], return_counts=True)
        fits = sizes <= wanted
        if sizes[fits].sum() >= wanted or len(low) == len(places):
            break
        near *= 8
    fits = fits if fits.any() else sizes == sizes.min()
    sums = sizes[fits].cumsum()
    chosen = groups[fits][: int(np.abs(sums - wanted).argmin()) + 1]
    found = low[np.isin(places[low], chosen)]
    return found[np.argsort(places[found], kind="stable")]


def _mixed(keys: np.ndarray, seed: int) -> np.ndarray:
    """Each key as another number, one to one (splitmix64's last steps, Steele et al., 2014)."""
    mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    return mixed
