"""When guesses are run: where the time that runs take, and how often guesses are right, say that every row gains.

A run of one row's last token and some guesses gives the scores of all of them. Tokens are drawn from these in turn, as
always, for as long as the guess before is what was drawn. So the tokens are those of the same seed without guesses, and
a guess that is certain is accepted with its own probability, which is the rule of speculative sampling (Leviathan et
al., arXiv:2211.17192).
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from phicli.inference.engine.lookup import Lookup
from phicli.inference.engine.row import Row
from phicli.inference.engine.rows import ProvingRows

SIZES = (2, 4, 8, 16)  # tokens of such a run: the last one drawn, and guesses
MOST = SIZES[-1] - 1  # guesses
GAIN = 1.05  # what has to be expected
LAST = 16  # times of a shape that count, those while it warms up among them
STALE = 512  # runs after which a time is measured again


def size_of(guess: Sequence[int]) -> int:
    """Tokens of the run that proves a guess."""
    return next(size for size in SIZES if size > len(guess))


@dataclass
class _Times:
    """Of runs of one shape. wanted: how many there have to be before they are believed. at: when the last one was."""

    wanted: int
    last: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))
    at: int = 0


class Times:
    """Seconds that runs take, by rows and tokens of each: the least of the last ones, as other work only adds to them.

    warming: runs of a shape that tell nothing yet.
    """

    def __init__(self, warming: int):
        self._warming, self._runs = warming, 0
        self._shapes: dict[tuple[int, int], _Times] = {}

    def add(self, rows: int, tokens: int, seconds: float) -> None:
        self._runs += 1
        shape = self._shapes.setdefault((rows, tokens), _Times(self._warming + 1))
        shape.last.append(seconds)
        shape.at = self._runs

    def of(self, rows: int, tokens: int) -> float | None:
        """None where it has to be measured, for the first time or again."""
        shape = self._shapes.get((rows, tokens))
        if shape and self._runs - shape.at > STALE:
            shape.last.clear()
            shape.wanted = 1
        return min(shape.last) if shape and len(shape.last) >= shape.wanted else None


class Speculation:
    """Chooses the rows of a step that run with guesses, and runs them.

    Args:
        fixed: guesses to run wherever there are any; None for as many as pay.
    """

    def __init__(self, rows: ProvingRows, fixed: int | None):
        self.times, self._rows, self._fixed = Times(rows.warming), rows, fixed

    def guesses(self, rows: Sequence[Row]) -> dict[Row, list[int]]:
        """Rows that are to run by themselves, with their guesses; none where that does not pay for all."""
        if self._fixed:
            found = {row: self._guess(row, self._fixed) for row in rows}
            return {row: guess for row, guess in found.items() if guess}
        if self._rows.alters and any(row.request.repeatable for row in rows):
            return {}
        plain = self.times.of(len(rows), 1)
        if not plain or max(size * plain / self._seconds(size, plain) for size in SIZES) < GAIN * len(rows):
            return {}
        sizes = {row: self._best(row, plain) for row in rows}  # of all, so that their guesses are judged
        together = sum(self._seconds(size, plain) for size, _ in sizes.values())
        if any(expected * plain < GAIN * together for _, expected in sizes.values()):
            return {}
        found = {row: self._guess(row, size - 1) for row, (size, _) in sizes.items()}
        return found if all(found.values()) else {}

    def run(self, row: Row, guess: Sequence[int]) -> None:
        """Run a row with its guess, and draw from all the scores. Raises what running and `Row.take` raise."""
        begun = time.perf_counter()
        scores = self._rows.prove(row, guess)
        self.times.add(1, size_of(guess), time.perf_counter() - begun)
        row.take_proved(scores, guess)
        self._rows.settle(row)

    def _best(self, row: Row, plain: float) -> tuple[int, float]:
        """The size of the run that gives most tokens in its time, and how many are expected of it."""
        chances = self._lookup(row).chances(MOST)
        choices = [(size, 1 + sum(chances[: size - 1])) for size in SIZES]
        return max(choices, key=lambda choice: choice[1] / self._seconds(choice[0], plain))

    def _guess(self, row: Row, count: int) -> list[int]:
        """As far as the row, and its grammar, can take it; all that runs has to fit into the row's place."""
        largest = max((size for size in SIZES if row.ran + size <= row.most), default=1)
        guess = self._lookup(row).guess(min(count, largest - 1))
        return guess[: row.drawing.allowed(guess)]

    def _lookup(self, row: Row) -> Lookup:
        row.lookup = row.lookup or Lookup(row.most)
        row.lookup.follow(row.tokens)
        return row.lookup

    def _seconds(self, size: int, plain: float) -> float:
        """Of a run with guesses; not yet measured, what is worth a try."""
        return self.times.of(1, size) or plain * (1 + size / SIZES[-1])
