"""The trials of a search, as a picture and as rows."""

from collections.abc import Mapping
from typing import Any

from phicli.reporting.charts import dot_chart
from phicli.reporting.reading import entries, figure, in_words, shown, table
from phicli.units import size

MOST_TRIALS = 500
FIGURES = {"size": "size", "kl": "KL", "perplexity": "perplexity", "speed": "tokens/s"}


def search_parts(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of the document of `phicli search`; None where no trial was measured."""
    goal = "perplexity" if document.get("goal") == "perplexity" else "kl"
    dots, rows = [], []
    for trial in entries(document.get("trials"), MOST_TRIALS):
        name = in_words(table(trial, "settings"))
        found = {key: figure(trial.get(key)) for key in FIGURES}
        kind = "best" if trial.get("best") else "front" if trial.get("front") else ""
        if (x := found["size"]) is not None and (y := found[goal]) is not None:
            dots.append((x / 1e6, y, name, kind))
        outside = f"outside: {trial['outside']}" if trial.get("outside") else ""
        remark = {"best": "best", "front": "on the front"}.get(kind, outside)
        rows.append({"settings": name, "remark": remark, "figures": [
            "" if value is None else size(value) if key == "size" else shown(value) for key, value in found.items()]})
    if not dots:
        return None
    return {
        "about": f"{len(rows)} trials. In colour: those that no other one beats in every figure, and the best of them.",
        "rows": rows, "figures": list(FIGURES.values()),
        "chart": dot_chart("Trials", dots, "MB", "perplexity" if goal == "perplexity" else "KL to the original"),
    }
