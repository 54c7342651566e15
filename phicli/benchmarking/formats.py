"""Rows of a benchmark as text: llama-bench's Markdown, CSV, JSON and JSON lines, with the latencies beside."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    "build_commit", "cpu_info", "gpu_info", "backends", "model_filename", "model_type", "model_size", "model_n_params",
    "n_threads", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts",
    "engine", "adapter", "n_rows", "median_ts", "mean_ttft_ms", "median_ttft_ms", "p95_ttft_ms", "mean_itl_ms",
    "median_itl_ms", "p95_itl_ms", "load_ms", "peak_memory", "peak_gpu_memory", "share", "baseline_ts", "change")


def written(rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """Rows in one of the formats, without a line end at the end."""
    return {"md": _markdown, "csv": _csv, "json": _json, "jsonl": _lines}[form](rows)


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(rows, indent=2, ensure_ascii=False)


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([[row.get(name) for name in COLUMNS] for row in rows])
    return out.getvalue().rstrip("\n")


def name_of(row: Mapping[str, Any]) -> str:
    """As llama-bench calls it: "pp512", "tg128 @ d512"; with the rows where there are more than one."""
    name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
    return name + (f" @ d{row['n_depth']}" if row["n_depth"] else "") + (
        f" x {row['n_rows']}" if row["n_rows"] > 1 else "")


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [("model", "size", "params", "backend", "threads", "test", "t/s", "median ms", "p95 ms"),
             ("---", "---:", "---:", "---", "---:", "---:", "---:", "---:", "---:")]
    for row in rows:
        what = "ttft" if row["n_prompt"] else "itl"
        lines.append((
            f"{row['model_type']}, {row['contender']}", f"{row['model_size'] / 2**20:.2f} MiB",
            f"{row['model_n_params'] / 1e6:.2f} M" if row["model_n_params"] else "", row["backends"],
            str(row["n_threads"]), name_of(row), f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
            f"{row[f'median_{what}_ms']:.2f}", f"{row[f'p95_{what}_ms']:.2f}"))
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
