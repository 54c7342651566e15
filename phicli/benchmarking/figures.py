"""From turns to figures, under the names that llama-bench and vLLM's benchmarks give them."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from phicli.benchmarking.turn import Case
from phicli.benchmarking.turns import Series
from phicli.uncertainty import RESAMPLES, Interval, interval, ratio_of_medians

SAME = ("engine", "adapter", "n_threads", "n_prompt", "n_gen", "n_depth", "n_rows")  # by which two runs are compared


def rows_of(series: Series, case: Case, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Two rows, as llama-bench has them: reading the prompt after the context, and the tokens after both.

    Speeds are of all rows together, in tokens a second; what is "_ns" is of a whole test. Latencies in ms: ttft is the
    time to the first token, itl the time between two.
    """
    turns = series.turns
    firsts, steps = [turn.first for turn in turns], [step for turn in turns for step in turn.counted]
    prompts = [case.rows * case.prompt / turn.first for turn in turns]
    rates = [case.rows * turn.rate for turn in turns]
    memory = {key: max((found for turn in turns if (found := getattr(turn, of)) is not None), default=None)
              for key, of in (("peak_memory", "memory"), ("peak_gpu_memory", "gpu_memory"))}
    common = {**about, **memory, "n_rows": case.rows, "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    blank = dict.fromkeys(f"{kind}_{what}_ms" for what in ("ttft", "itl") for kind in ("mean", "median", "p5", "p95"))
    prompt_share = _share(series, lambda turn: 1 / turn.first)
    return [
        {**common, "n_prompt": case.prompt, "n_gen": 0, "n_depth": case.depth, **_spread(firsts, prompts), **blank,
         **_latency("ttft", firsts), "share": prompt_share[0], "share_interval": prompt_share[1]},
        {**common, "n_prompt": 0, "n_gen": case.new, "n_depth": case.depth + case.prompt,
         **_spread([case.new / turn.rate for turn in turns], rates), **blank, **_latency("itl", steps),
         **dict(zip(("share", "share_interval"), _share(series, lambda turn: turn.rate), strict=True))},
    ]


def _spread(seconds: Sequence[float], rates: Sequence[float]) -> dict[str, Any]:
    def deviation(values: Sequence[float]) -> float:
        return statistics.stdev(values) if len(values) > 1 else 0.0

    nanoseconds = [round(1e9 * value) for value in seconds]
    return {"avg_ns": round(statistics.mean(nanoseconds)), "stddev_ns": round(deviation(nanoseconds)),
            "avg_ts": statistics.mean(rates), "stddev_ts": deviation(rates), "median_ts": statistics.median(rates),
            "samples_ns": nanoseconds, "samples_ts": list(rates)}


def _latency(what: str, seconds: Sequence[float]) -> dict[str, float]:
    return {f"mean_{what}_ms": 1e3 * statistics.mean(seconds), f"median_{what}_ms": 1e3 * statistics.median(seconds),
            **{f"p{share}_{what}_ms": 1e3 * float(np.percentile(seconds, share)) for share in (5, 95)}}


def _share(series: Series, speed: Any) -> tuple[float | None, Interval | None]:
    """Of the first contender's speed, the median over the turns, and how sure that is."""
    if not series.beside:
        return None, None
    shares = np.array(series.shares(speed))
    drawn = np.random.default_rng(0).choice(shares, (RESAMPLES, len(shares)))
    return float(np.median(shares)), interval(np.median(drawn, axis=1)) if len(shares) > 2 else None


def compare(rows: Sequence[dict[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> None:
    """Give each row that an earlier run has too "baseline_ts", "change" (1: as fast) and "change_interval"."""
    before = {tuple(row.get(name) for name in SAME): row for row in baseline}
    for row in rows:
        old = before.get(tuple(row[name] for name in SAME))
        if old:
            change = ratio_of_medians(np.array(row["samples_ts"]), np.array(old["samples_ts"]))
            row |= {"baseline_ts": float(np.median(old["samples_ts"])), "change": change[0],
                    "change_interval": change[1]}


def verdict(row: Mapping[str, Any]) -> str:
    """What a change says: "faster", "slower", or that the runs differ no more than their turns do."""
    low, high = row["change_interval"]
    return "faster" if low > 1 else "slower" if high < 1 else "no change beyond noise"

