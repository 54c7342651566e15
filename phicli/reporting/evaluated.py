"""What an evaluation says, as rows of a table and as answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phicli.reporting.reading import LONGEST, NAME, entries, figure, shown
from phicli.units import size


def stage_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each stage that was measured; share: of the largest one's size; figures: each with its interval."""
    stages = [stage for stage in entries(evaluation.get("stages")) if not stage.get("missing")]
    sizes = [figure(stage.get("bytes")) or 0.0 for stage in stages]
    return [{"stage": str(stage.get("stage"))[:NAME], "size": size(count), "share": count / (max(sizes) or 1.0),
             "figures": [_with_interval(stage, name) for name in ("perplexity", "kl", "top1")]}
            for stage, count in zip(stages, sizes, strict=True)]


def has_intervals(evaluation: Mapping[str, Any]) -> bool:
    return any(stage.get("perplexity_interval") for stage in entries(evaluation.get("stages")))


def measured_on(evaluation: Mapping[str, Any]) -> str:
    """Of which rows the figures are."""
    rows, tokens = (shown(figure(evaluation.get(name))) for name in ("rows", "tokens"))
    return f"{rows} rows of {Path(str(evaluation.get('eval_data'))).name[:NAME]}, {tokens} tokens that count"


def answers(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Questions, each with the answer that the data have and those of the stages."""
    found = []
    for one in entries(evaluation.get("answers")):
        given = one.get("answers")
        texts = {"in the data": one.get("reference"), **(given if isinstance(given, dict) else {})}
        found.append({"prompt": str(one.get("prompt"))[:LONGEST],
                      "answers": [(str(name)[:NAME], str(text)[:LONGEST]) for name, text in texts.items() if text]})
    return found


def _with_interval(stage: Mapping[str, Any], name: str) -> tuple[str, str]:
    def word(value: float | None) -> str:
        if name == "top1" and value is not None:
            return f"{value:.1%}"
        return shown(value, 4 if name == "perplexity" else 3)

    interval = stage.get(f"{name}_interval")
    ends = [word(figure(end)) for end in interval] if isinstance(interval, list) else []
    return word(figure(stage.get(name))), f"{ends[0]} to {ends[1]}" if len(ends) == 2 and all(ends) else ""
