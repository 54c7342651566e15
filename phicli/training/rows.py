"""Rows as token ids, which of them are held out, and which rows make up each step."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from phicli.errors import BadInput
from phicli.text import Encoded

POOL = 16  # batches that are sampled together and sorted by length, so that rows of a batch need little padding


@dataclass(frozen=True)
class Rows:
    """Rows ready to train on.

    train, held_out: each has a token that counts.
    cut: rows longer than the limit. dropped: of these, rows that have nothing left to learn.
    """

    train: list[Encoded]
    held_out: list[Encoded]
    cut: int
    dropped: int


def prepare_rows(rows: Sequence[Encoded], *, seq_len: int, mask_prompt: bool, eval_split: float, seed: int) -> Rows:
    """Cut rows to `seq_len` tokens and hold out a share of them, chosen by the seed.

    Raises:
        BadInput: nothing left to learn in any row, or no row left to train on.
    """
    kept: list[Encoded] = []
    cut = 0
    for row in rows:
        encoded = row if mask_prompt else row.whole()
        cut += len(encoded.ids) > seq_len
        if (shortened := encoded.cut(seq_len)).targets:
            kept.append(shortened)
    if not kept:
        raise BadInput(f"no row has a token to learn within {seq_len} tokens", hint="--seq-len, or --no-mask-prompt")
    held = set(random.Random(seed).sample(range(len(kept)), max(1, round(eval_split * len(kept))) if eval_split else 0))
    train = [row for i, row in enumerate(kept) if i not in held]
    if not train:
        raise BadInput(f"{len(kept)} rows, all held out: none left to train on", hint="--eval-split 0, or more rows")
    return Rows(train, [kept[i] for i in sorted(held)], cut, len(rows) - len(kept))


def batches(lengths: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of `size` row numbers; rows come once per epoch, those of a batch are of like length."""
    order = random.Random(seed)

    def epochs() -> Iterator[int]:
        while True:
            yield from order.sample(range(len(lengths)), len(lengths))

    stream = epochs()
    while True:
        pool = sorted(islice(stream, size * POOL), key=lengths.__getitem__)
        groups = [pool[i : i + size] for i in range(0, len(pool), size)]
        order.shuffle(groups)
        yield from groups
