"""What --dry-run shows: what would be done, why, with how much time and space."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from phicli.cli import console
from phicli.config.layers import Settings
from phicli.progress import Silent

COLUMNS = ("step", "would", "why", "time", "memory", "disk")


def show_step(step: str, flags: dict[str, Any], json: bool) -> None:
    """What one step would do with its flags."""
    from phicli.steps.forecast import forecast_step

    _show([forecast_step(Settings(), flags, step, _Warnings())], json)


class _Warnings(Silent):
    """Says nothing of a plan but what a person should know before it is begun."""

    def warn(self, text: str) -> None:
        console.warn(text)


def show_lab(flags: dict[str, Any], first: str | None, last: str | None, json: bool) -> None:
    """What `phicli run` would do."""
    from phicli.steps.forecast import forecast_lab

    _show(forecast_lab(Settings(), flags, first, last, _Warnings()), json)


def _show(forecasts: Sequence[Any], json: bool) -> None:
    if json:
        console.result_json([asdict(one) for one in forecasts])
    else:
        console.result_table(COLUMNS, [(
            one.step, {"run": "run", "nothing": "do nothing"}[one.action], one.why, _time(one),
            _size(one.memory) + (f" and {_size(one.gpu)} of the GPU" if one.gpu else ""), _size(one.disk))
            for one in forecasts])
    writes = ", ".join(one.place for one in forecasts if one.disk and one.place)
    console.note("a dry run: nothing was done" + (f"; it would write {writes}" if writes else ""))


def _time(one: Any) -> str:
    if one.seconds is None:
        return "" if one.action == "nothing" else "not known"
    if one.last_time:
        return f"{console.duration(one.seconds)} last time"
    unit, each = next(pair for pair in (("h", 3600), ("min", 60), ("s", 1)) if one.seconds >= 2 * pair[1])
    return f"about {one.seconds / each:.0f} {unit}"


def _size(count: float | None) -> str:
    return console.size(count) if count else ""
