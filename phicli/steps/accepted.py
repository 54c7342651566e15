"""The figures of a build by which a later one is judged, and how that is done."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phicli.uncertainty import Resamples, interval
from phicli.units import number, size

# How much worse is let through at --tolerance 1; kl is a share of the accepted KL, and so much more
PERPLEXITY, KL, KL_FLOOR, TOP1, SIZE, SPEED = 0.02, 0.10, 2e-4, 0.01, 0.02, 0.25
UNDISTURBED = 0.6  # of the speed of its fastest tokens, which the yardstick's best turn has on a quiet machine

OF_BASE = ("kl", "top1")  # with an adapter a model is meant to differ from the original
YARDSTICK = "yardstick"  # the contender that is no build, but tells how fast the machine is just now
SAME_ROWS = "held-out tokens"  # without which figures of quality cannot be compared
NAMES = {"kl": "KL to original", "top1": "top-1 as original", "kl_torch": "KL to torch", "top1_torch": "top-1 as torch"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. found, limit: in words. option: that gave the limit; "": the accepted build did."""

    name: str
    of: str
    found: str
    limit: str
    passed: bool
    option: str = ""


def compared(new: Mapping[str, Any], old: Mapping[str, Any], tolerance: float) -> Iterator[Check]:
    """Checks of a build's facts against those of the accepted one, as `phicli.steps.gate.facts` gives them."""
    same = new["tokens_digest"] == old["tokens_digest"]
    yield Check(SAME_ROWS, "", f"{new['rows']} rows, {new['tokens']} tokens" + ("" if same else ", others"),
                f"{old['rows']} rows, {old['tokens']} tokens", same)
    yield Check("ends of answers", "", _ids(new["ends"]), _ids(old["ends"]), set(old["ends"]) <= set(new["ends"]))
    for name, linears in old["adapters"].items():
        have = new["adapters"].get(name, 0)
        yield Check("linears that it changes", name, str(have), str(linears), have >= linears)
    resamples = Resamples(np.array(new["blocks"])) if same else None
    for name, accepted in old["stages"].items():
        stage = new["stages"].get(name)
        if stage is None:
            yield Check("stage", name, "not there", "there", False)
        else:
            yield from _quality(name, stage, accepted, resamples, tolerance) if resamples else ()
            most = accepted["bytes"] * (1 + SIZE * tolerance)
            yield Check("size", name, size(stage["bytes"]), size(most), stage["bytes"] <= most)


def _quality(name: str, stage: Mapping[str, Any], accepted: Mapping[str, Any], resamples: Resamples,
             tolerance: float) -> Iterator[Check]:
    """Row by row: a figure fails where it is worse than allowed in 97.5 % of resamples of the rows."""
    blocks, before = ({key: np.array(sums) for key, sums in one["blocks"].items()} for one in (stage, accepted))
    for figure in [name for name in blocks if name in before and not (stage["adapter"] and name in OF_BASE)]:
        worse = resamples.means(blocks[figure] - before[figure])
        value = stage["perplexity" if figure == "nll" else figure]
        was = accepted["perplexity" if figure == "nll" else figure]
        if figure == "nll":
            allowed, shown = math.log1p(PERPLEXITY * tolerance), number
            limit = f"{number(was * (1 + PERPLEXITY * tolerance))}"
        elif figure.startswith("kl"):
            allowed, shown = was * KL * tolerance + KL_FLOOR, number
            limit = f"{number(was + allowed, 3)}"
        else:
            allowed, shown, worse = TOP1 * tolerance, "{:.1%}".format, -worse
            limit = f"{was - allowed:.1%}"
        low = interval(worse)[0] if resamples.enough else float(worse.mean())
        yield Check(NAMES.get(figure, "perplexity"), name, shown(value), limit, low <= allowed)


def slower(new: Mapping[str, float], old: Mapping[str, float], tolerance: float) -> list[Check]:
    """The fastest tokens by contender, in tokens/s, beside those of the accepted build.

    Where the yardstick is slower than then, so is the machine, and each limit is lower by as much.
    """
    machine = min(1.0, new[YARDSTICK] / old[YARDSTICK])
    limits = {name: machine * max(0.0, 1 - SPEED * tolerance) * before for name, before in old.items()
              if name in new and name != YARDSTICK}
    return [Check("tokens/s", name, number(new[name]), number(limit), new[name] >= limit)
            for name, limit in limits.items()]


def is_busy(speed: Mapping[str, Sequence[float]], fastest: Mapping[str, float]) -> bool:
    """Whether other programs break in on all turns: the yardstick's best is far from as fast as its fastest tokens."""
    return max(speed[YARDSTICK]) < UNDISTURBED * fastest[YARDSTICK]


def _ids(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
