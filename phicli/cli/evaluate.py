"""`phicli evaluate`: how well each stage does on held-out rows."""

from collections.abc import Sequence
from typing import Any

from phicli.cli import console, forecasts, options
from phicli.cli.following import Next
from phicli.config.steps import EvaluateConfig

COLUMNS = ("stage", "size", "perplexity", "KL to original", "top-1 as original", "KL to torch", "top-1 as torch",
           "seconds")

LEGEND = (
    "perplexity: of how many tokens the model is unsure at each token of a held-out answer; lower is better",
    "KL to original: how far its predictions are from the original model's; 0 is the same",
    "top-1 as original: how often the likeliest token is the same",
    "KL to torch, top-1 as torch: the same for an ONNX stage, beside what it was made from",
)


def evaluate(config: EvaluateConfig, flags: options.Flags, dry_run: options.DryRun = False,
             json: options.Json = False) -> Sequence[Next]:
    """Measure every stage on held-out rows: perplexity, and agreement with the original.

    Examples:
      phicli evaluate --model tiny
      phicli evaluate --adapter travel --eval-data questions.jsonl
    More: docs/performance.md
    """
    if dry_run:
        forecasts.show_step("evaluate", flags, json)
        return [("evaluate",)]
    with console.task_log("evaluate", config.root_folder) as progress:
        from phicli.steps.evaluate import evaluate as evaluate_stages

        document = evaluate_stages(config, progress)
    adapters = [stage["stage"].partition(" + ")[2] for stage in document["stages"] if not stage["missing"]]
    after = [("chat", *(["--adapter", max(adapters)] if any(adapters) else []))]
    if json:
        console.result_json(document)
        return after
    title = f"{document['rows']} rows, {document['tokens']} response tokens of {document['eval_data']}"
    console.result_table(COLUMNS, [_row(stage) for stage in document["stages"]], title)
    from phicli.steps.telling import judged

    console.note(judged(document["stages"]))
    for line in LEGEND:
        console.note(line)
    if document["cut_rows"]:
        console.warn(f"{document['cut_rows']} rows are longer than {document['seq_len']} tokens and were cut")
    return after


def _row(stage: dict[str, Any]) -> tuple[Any, ...]:
    if stage["missing"]:
        return (f"{stage['stage']} ({stage['missing']})", *([None] * 7))
    shares = {key: None if stage[key] is None else f"{stage[key]:.1%}" for key in ("top1", "top1_torch")}
    return (stage["stage"], console.size(stage["bytes"]), console.number(stage["perplexity"]), _small(stage["kl"]),
            shares["top1"], _small(stage["kl_torch"]), shares["top1_torch"], f"{stage['seconds']:.1f}")


def _small(value: float | None) -> str | None:
    return None if value is None else console.number(value, 3)
