"""Contenders take turns: each is measured right between two turns of the first one.

The speed of a machine that others use too changes within seconds; the share of the first one's speed does not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from phicli.benchmarking.turn import Case, Turn
from phicli.errors import PhicliError
from phicli.progress import SILENT, Progress


class Turner(Protocol):
    """Who can be measured: a `Worker`, or llama-bench."""

    def turn(self, case: Case) -> Turn: ...


@dataclass
class Series:
    """Turns of one contender in one case. beside: the first contender's turns right before and after each."""

    turns: list[Turn] = field(default_factory=list)
    beside: list[tuple[Turn, Turn]] = field(default_factory=list)

    def shares(self, speed: Callable[[Turn], float] = lambda turn: turn.rate) -> list[float]:
        """Of the first contender's speed, a turn each; the first one's own is 1."""
        return [2 * speed(turn) / (speed(before) + speed(after))
                for turn, (before, after) in zip(self.turns, self.beside, strict=True)] if self.beside else [1.0]


def take_turns(turners: Mapping[str, Turner], cases: Sequence[Case], rounds: int,
               progress: Progress = SILENT) -> Iterator[tuple[str, Case, Series]]:
    """Measure every contender in every case.

    One that fails in a case is left out of that, and the reason told; the first one's failure ends all.

    Yields:
        what was measured, case by case.

    Raises:
        PhicliError: of the first contender.
    """
    first, *others = turners
    for case in cases:
        found = {name: Series() for name in turners}
        with progress.task(_words(case), rounds * max(1, len(others)), "turns") as task:
            before = turners[first].turn(case)
            for name in others:  # a turn that does not count: pages of files come in meanwhile
                _try(found, turners, name, case, progress)
            for series in found.values():
                series.turns.clear()
            for _ in range(rounds):
                for name in [name for name in others if name in found] or [first]:
                    if name != first:
                        _try(found, turners, name, case, progress)
                    after = turners[first].turn(case)
                    if name != first and name in found:
                        found[name].beside.append((before, after))
                    found[first].turns.append(after)
                    before = after
                    task.advance(1, **{"tok/s": case.rows * after.rate})
        for name, series in found.items():
            yield name, case, series


def _try(found: dict[str, Series], turners: Mapping[str, Turner], name: str, case: Case, progress: Progress) -> None:
    try:
        found[name].turns.append(turners[name].turn(case))
    except PhicliError as e:
        del found[name]
        progress.warn(f"{name} is left out: {e}")


def _words(case: Case) -> str:
    return (f"{case.prompt} tokens of prompt" + (f" after {case.depth}" if case.depth else "")
            + (f", {case.rows} rows" if case.rows > 1 else ""))
