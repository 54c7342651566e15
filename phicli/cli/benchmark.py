"""`phicli benchmark`: how fast the model is."""

from collections.abc import Mapping, Sequence
from typing import Any

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.measuring import BenchmarkConfig

COLUMNS = ("what", "threads", "prompt", "depth", "rows", "first token", "p95", "prompt tokens/s", "tokens/s", "a token",
           "p95", "beside phicli", "memory", "load")


def benchmark(config: BenchmarkConfig, json: options.Json = False) -> Sequence[Next]:
    """Measure load, first token, prompt and decoding speed, memory; by adapter, threads, depth and rows at once.

    Examples:
      phicli benchmark --prompt-tokens 16,512 --depth 0,1024
      phicli benchmark --against torch --against genai --baseline before.json
    More: docs/benchmark.md
    """
    from phicli.steps.benchmark import benchmark as measure

    with console.task_log("benchmark", config.root_folder) as progress:
        document = measure(config, progress)
    rows = document["rows"]
    if json:
        console.result_json(document)
    elif config.format != "table":
        from phicli.benchmarking.formats import written

        for line in written(rows, config.format).split("\n"):
            console.result(line)
    else:
        _show(rows)
    return ()


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    changed = any("change" in row for row in rows)
    columns = (*COLUMNS, *(("prompt since", "decoding since") if changed else ()))
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    title = rows[0]["gpu_info"] or rows[0]["cpu_info"]
    console.result_table(columns, [_row(*pair, changed) for pair in pairs], f"{title}; {rows[0]['model_type']}")
    console.note("beside phicli: share of its tokens/s without an adapter, each turn right between two of it; "
                 "in brackets: 95 % of resamples lie there")


def _row(prompt: Mapping[str, Any], decode: Mapping[str, Any], changed: bool) -> tuple[Any, ...]:
    memory = decode["peak_gpu_memory"] or decode["peak_memory"]
    share = decode["share"]
    return (
        decode["contender"], decode["n_threads"], prompt["n_prompt"], prompt["n_depth"], decode["n_rows"],
        _ms(prompt["median_ttft_ms"]), _ms(prompt["p95_ttft_ms"]), console.number(prompt["median_ts"]),
        console.number(decode["median_ts"]), _ms(decode["median_itl_ms"]), _ms(decode["p95_itl_ms"]),
        None if share is None else f"{share:.2f}" + _between(decode["share_interval"], "{:.2f}"),
        console.size(memory) if memory else None,
        None if decode["load_ms"] is None else console.duration(decode["load_ms"] / 1e3),
        *([_change(prompt), _change(decode)] if changed else []))


def _ms(value: float) -> str:
    return f"{console.number(value, 3)} ms"


def _between(found: Sequence[float] | None, form: str) -> str:
    return f" ({form.format(found[0])} to {form.format(found[1])})" if found else ""


def _change(row: Mapping[str, Any]) -> str | None:
    from phicli.benchmarking.figures import verdict

    if "change" not in row:
        return None
    return f"{row['change'] - 1:+.1%}{_between([x - 1 for x in row['change_interval']], '{:+.1%}')}: {verdict(row)}"
