"""Figures of answers beside references: two of our own, and those of other packages by entry point."""

import difflib
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from phicli.errors import BadInput, UsageError
from phicli.uncertainty import FEWEST, RESAMPLES, interval

GROUP = "phicli.metrics"
SECONDS = 5.0  # for the interval of a metric, which is called again for each resample; a slow one gets none
Exchange = tuple[str, str, str]  # prompt, reference, answer
Metric = Callable[[list[Exchange]], float]


def exact_match(exchanges: list[Exchange]) -> float:
    """Share of the answers that are the reference, but for case, punctuation and blanks."""
    return float(np.mean([_words(reference) == _words(answer) for _, reference, answer in exchanges]))


def token_f1(exchanges: list[Exchange]) -> float:
    """Mean F1 of the words of answer and reference, as SQuAD has it (Rajpurkar et al., 2016)."""
    return float(np.mean([_f1(_words(reference), _words(answer)) for _, reference, answer in exchanges]))


OWN: dict[str, Metric] = {"exact-match": exact_match, "token-f1": token_f1}


def find_metric(name: str) -> Metric:
    """A metric of ours, or one that an installed package offers in the entry point group `phicli.metrics`.

    Raises:
        UsageError: none of that name. BadInput: it cannot be imported.
    """
    if name in OWN:
        return OWN[name]
    offered = {point.name: point for point in entry_points(group=GROUP)}
    if name not in offered:
        known = [*OWN, *sorted(offered)]
        near = difflib.get_close_matches(name, known, 1)
        raise UsageError(f"no metric '{name}'; there are: {', '.join(known)}", where="--metric",
                         hint=f"did you mean '{near[0]}'?" if near else
                         f'a package with the entry point {name} in the group "{GROUP}"')
    try:
        found: Metric = offered[name].load()
    except Exception as e:
        raise BadInput(f"the metric '{name}' cannot be loaded: {type(e).__name__}: {e}",
                       where=offered[name].value) from e
    return found


def judge(name: str, metric: Metric, exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """{"value", "interval"} of a metric; the interval None where the metric is slow, or the answers are few.

    Raises:
        BadInput: the metric fails, or gives no finite number.
    """
    begun = time.perf_counter()
    value = _call(name, metric, list(exchanges))
    times = min(RESAMPLES // 2, int(SECONDS / max(time.perf_counter() - begun, 1e-6)))
    if len(exchanges) < FEWEST or times < 200:
        return {"value": value, "interval": None}
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(exchanges), size=(times, len(exchanges)))
    return {"value": value,
            "interval": interval(np.array([_call(name, metric, [exchanges[i] for i in row]) for row in drawn]))}


def _call(name: str, metric: Metric, exchanges: list[Exchange]) -> float:
    try:
        value = float(metric(exchanges))
    except Exception as e:
        raise BadInput(f"the metric '{name}' failed: {type(e).__name__}: {e}", where="--metric") from e
    if not math.isfinite(value):
        raise BadInput(f"the metric '{name}' gave {value}", where="--metric")
    return value


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _f1(reference: list[str], answer: list[str]) -> float:
    same = sum((Counter(reference) & Counter(answer)).values())
    return 2 * same / (len(reference) + len(answer)) if same else float(reference == answer)
