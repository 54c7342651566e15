"""What a benchmark says: documents with the fields of llama-bench's JSON, of whichever program."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phicli.reporting.reading import MOST, NAME, entries, figure, shown

NAMES = ("contender", "engine", "model_filename", "model_type")  # what a line may call what it measured
BESIDE = {"adapter": "{}", "n_rows": "{} rows", "n_threads": "{} threads"}


def speed_rows(documents: Iterable[Any]) -> list[dict[str, Any]]:
    """A row for each measurement of a prompt (`n_prompt`) or of an answer (`n_gen`) after `n_depth` tokens.

    share, spread: of speed and its standard deviation, of the fastest of its kind. decode: whether it is of an answer.
    """
    lines = [line for document in documents for line in _lines(document) if figure(line.get("avg_ts"))][:MOST]
    fastest: dict[bool, float] = {}
    for line in lines:
        kind, speed = _decodes(line), figure(line["avg_ts"]) or 0.0
        fastest[kind] = max(fastest.get(kind, 0.0), speed)
    return [_row(line, fastest[_decodes(line)]) for line in lines]


def measured_with(documents: Iterable[Any]) -> str:
    """The machine and the date of the first measurement that says so."""
    first: Mapping[str, Any] = next((line for document in documents for line in _lines(document)), {})
    parts = [first.get("gpu_info") or first.get("cpu_info"), first.get("test_time")]
    return ", ".join(str(part)[:NAME] for part in parts if part)


def _lines(document: Any) -> list[Mapping[str, Any]]:
    return entries(document.get("rows") if isinstance(document, dict) else document)


def _decodes(line: Mapping[str, Any]) -> bool:
    return bool(figure(line.get("n_gen")))


def _row(line: Mapping[str, Any], fastest: float) -> dict[str, Any]:
    name = next((str(line[key]) for key in NAMES if line.get(key)), "model")
    more = [text.format(line[key]) for key, text in BESIDE.items() if line.get(key) not in (None, "", 1)]
    speed, spread = figure(line["avg_ts"]) or 0.0, figure(line.get("stddev_ts")) or 0.0
    tokens = shown(figure(line.get("n_gen" if _decodes(line) else "n_prompt")))
    after = f", after {shown(depth)}" if (depth := figure(line.get("n_depth"))) else ""
    return {
        "what": ", ".join([Path(name).name, *more])[:NAME], "decode": _decodes(line),
        "of": f"{tokens} tokens of {'an answer' if _decodes(line) else 'a prompt'}{after}",
        "speed": shown(speed) + (f" ± {shown(spread, 2)}" if spread else ""),
        "share": speed / (fastest or 1.0), "spread": min(spread, speed) / (fastest or 1.0),
    }
