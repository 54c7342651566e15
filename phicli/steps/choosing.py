"""What a search tries next, what is within its limits, and which of its trials is the best."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]
Axes = Mapping[str, Sequence[Any]]  # name of a setting -> its values, what is tried first first
BETTER = {"size": 1, "kl": 1, "perplexity": 1, "speed": -1}  # figure -> 1: the smaller, the better
ASKED = 200  # proposals that may have been tried already, before the next one of the grid is taken
MOST = 5000  # points of a grid that are looked at
RIDGE = 1e-3  # weight of the regression's penalty: more values than trials are no trouble
FAR = 1e9  # what being outside of the limits counts, beside any figure


@dataclass(frozen=True)
class Limits:
    """What a result has to keep to; None: no limit. size in bytes, speed in tokens a second."""

    size: float | None = None
    kl: float | None = None
    perplexity: float | None = None
    speed: float | None = None

    def exceeded(self, figures: Mapping[str, Any]) -> list[str]:
        """The figures known so far that are not within their limits."""
        return [name for name, sign in BETTER.items() if figures.get(name) is not None
                and (limit := getattr(self, name)) is not None and sign * figures[name] > sign * limit]

    def excess(self, figures: Mapping[str, Any]) -> float:
        """How far they are outside, in shares of the limits."""
        return sum(abs(figures[name] / (getattr(self, name) or 1e-9) - 1) for name in self.exceeded(figures))


def grid_size(axes: Axes) -> int:
    return math.prod(map(len, axes.values()))


def next_settings(axes: Axes, trials: Sequence[Mapping[str, Any]], limits: Limits, goal: str,
                  seed: int) -> Settings | None:
    """What to try after these trials; None where all of the grid has been.

    First come the first values of all axes, then each other value with the first ones of the others. From then on it
    is what would be best if every value changed the figures by a factor of its own; where that has been tried, what
    Optuna's TPE sampler (Bergstra et al., 2011) proposes. It depends on the trials, limits and seed alone, so a search
    that goes on does what it would have done.
    """
    tried = [trial["settings"] for trial in trials]
    for settings in one_by_one(axes):
        if settings not in tried:
            return settings
    if grid_size(axes) <= sum(_within(axes, settings) for settings in tried):
        return None
    ways = itertools.chain(_expected(axes, trials, limits, goal), _proposed(axes, trials, limits, goal, seed),
                           _grid(axes))
    return next(found for found in ways if found not in tried)


def one_by_one(axes: Axes) -> Iterator[Settings]:
    """The first value of every axis, then in turn each other value of one of them."""
    first = {name: values[0] for name, values in axes.items()}
    yield first
    for turn in itertools.zip_longest(*([(name, value) for value in values[1:]] for name, values in axes.items())):
        yield from (first | {name: value} for name, value in filter(None, turn))


def _expected(axes: Axes, trials: Sequence[Mapping[str, Any]], limits: Limits, goal: str) -> Iterator[Settings]:
    """The best by a regression of each figure's logarithm on the values, if it is none of the trials."""
    import numpy as np

    grid, known = list(itertools.islice(_grid(axes), MOST)), [t for t in trials if _within(axes, t["settings"])]

    def indicators(rows: Sequence[Settings]) -> Any:
        return np.array([[1.0, *(row[name] == value for name, values in axes.items() for value in values)]
                         for row in rows])

    expected: list[dict[str, Any]] = [{} for _ in grid]
    for name in BETTER:
        measured = [trial for trial in known if (trial.get(name) or 0) > 0]
        if measured:
            seen = indicators([trial["settings"] for trial in measured])
            weights = np.linalg.solve(seen.T @ seen + RIDGE * np.eye(seen.shape[1]),
                                      seen.T @ np.log([trial[name] for trial in measured]))
            for point, value in zip(expected, np.exp(indicators(grid) @ weights), strict=True):
                point[name] = float(value)
    for trial in known:
        if trial["settings"] in grid:
            expected[grid.index(trial["settings"])] = dict(trial)
    costs = [cost(point, limits, goal) for point in expected]
    yield grid[costs.index(min(costs))]


def _proposed(axes: Axes, trials: Sequence[Mapping[str, Any]], limits: Limits, goal: str,
              seed: int) -> Iterator[Settings]:
    with _quiet():
        import optuna
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import create_trial

        space: dict[str, Any] = {name: CategoricalDistribution(range(len(values))) for name, values in axes.items()}
        sampler = optuna.samplers.TPESampler(seed=seed + len(trials), n_startup_trials=1)
        study = optuna.create_study(sampler=sampler)
        for trial in trials:
            if _within(axes, trial["settings"]):
                places = {name: list(axes[name]).index(value) for name, value in trial["settings"].items()}
                study.add_trial(create_trial(params=places, distributions=space, value=cost(trial, limits, goal)))
        for _ in range(ASKED):
            asked = study.ask(space)
            yield {name: axes[name][place] for name, place in asked.params.items()}
            study.tell(asked, 2 * FAR)  # it has been tried: look elsewhere


def cost(trial: Mapping[str, Any], limits: Limits, goal: str) -> float:
    """The smaller, the better: the goal's figure within the limits, else how far outside the trial is."""
    if trial.get(goal) is None or limits.exceeded(trial):
        return FAR * (1 + min(limits.excess(trial), 0.9) if limits.exceeded(trial) else 2)
    return BETTER[goal] * float(trial[goal])


def best_of(trials: Sequence[Mapping[str, Any]], limits: Limits, goal: str) -> int | None:
    """The number of the best trial within the limits; None where none is."""
    found = [(cost(trial, limits, goal), number) for number, trial in enumerate(trials)]
    least = min(found, default=(FAR, 0))
    return least[1] if least[0] < FAR else None


def front_of(trials: Sequence[Mapping[str, Any]], limits: Limits, figures: Sequence[str]) -> set[int]:
    """The numbers of the trials within the limits that no other one beats or equals in all these figures (Pareto)."""
    known = {number: [BETTER[name] * float(trial[name]) for name in figures] for number, trial in enumerate(trials)
             if not limits.exceeded(trial) and all(trial[name] is not None for name in figures)}
    return {number for number, mine in known.items() if not any(
        all(a <= b for a, b in zip(theirs, mine, strict=True)) and (theirs != mine or other < number)
        for other, theirs in known.items() if other != number)}


def _within(axes: Axes, settings: Settings) -> bool:
    return settings.keys() == axes.keys() and all(settings[name] in values for name, values in axes.items())


def _grid(axes: Axes) -> Iterator[Settings]:
    return (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says on stderr what it does; while this runs, only errors."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
