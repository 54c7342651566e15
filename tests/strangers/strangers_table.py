"""Runs the tests of this folder and prints a table of them: each test's docstring is "fault: how it ends."."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
Row = tuple[str, str, str]


class _Collector:
    def __init__(self) -> None:
        self.words: dict[str, tuple[str, str]] = {}
        self.outcomes: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            what, _, outcome = " ".join((item.function.__doc__ or item.name).split()).partition(": ")
            self.words[item.nodeid] = (what, outcome)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes.setdefault(report.nodeid, []).append(report.outcome)


def strangers_rows() -> tuple[list[Row], int]:
    """Rows of (fault, "n of m" or "not here", how it ends), one a test function, and how many tests failed."""
    found = _Collector()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        pytest.main(["-q", "-p", "no:cacheprovider", str(HERE)], plugins=[found])
    groups: dict[tuple[str, str], list[list[str]]] = {}
    for node, outcomes in found.outcomes.items():
        groups.setdefault(found.words[node], []).append(outcomes)
    rows, failed = [], 0
    for (what, outcome), tries in groups.items():
        ran = [t for t in tries if "skipped" not in t]
        good = sum(all(o == "passed" for o in t) for t in ran)
        failed += len(ran) - good
        rows.append((what, f"{good} of {len(ran)}" if ran else "not here", outcome))
    if failed or not rows:
        print(said.getvalue())
    return rows, failed or int(not rows)
