"""`phicli evaluate`: how well each stage does on held-out rows."""

from collections.abc import Callable, Sequence
from typing import Any

from phicli.cli import console, forecasts, options
from phicli.cli.following import Next
from phicli.config.steps import EvaluateConfig

COLUMNS = ("stage", "size", "perplexity", "KL to {}", "top-1 as {}", "KL to torch", "top-1 as torch",
           "perplexity / {}")
LEGEND = (
    "perplexity: of how many tokens the model is unsure at each token of a held-out answer; lower is better",
    "KL to original: how far its predictions are from the original model's; 0 is the same",
    "top-1 as original: how often the likeliest token is the same",
    "KL to torch, top-1 as torch: the same for an ONNX stage, beside what it was made from",
    "perplexity / original: how many times its perplexity, row by row; in brackets: 95 % of resamples lie there",
)


def evaluate(config: EvaluateConfig, flags: options.Flags, dry_run: options.DryRun = False,
             json: options.Json = False) -> Sequence[Next]:
    """Measure every stage on held-out rows: perplexity, agreement with the original, answers, metrics.

    Examples:
      phicli evaluate --model tiny --generate 3
      phicli evaluate --stage model.gguf --stage onnx+travel --eval-data text.txt
    More: docs/evaluate.md
    """
    if dry_run:
        forecasts.show_step("evaluate", flags, json)
        return [("evaluate",)]
    with console.task_log("evaluate", config.root_folder) as progress:
        from phicli.steps.evaluate import evaluate as evaluate_stages

        document = evaluate_stages(config, progress)
    adapters = [stage["stage"].partition(" + ")[2] for stage in document["stages"] if not stage["missing"]]
    chat = ("chat", *(["--adapter", max(adapters)] if any(adapters) else []))
    after = [] if config.stages else [chat]
    if json:
        console.result_json(document)
        return after
    title = f"{document['rows']} rows, {document['tokens']} tokens that count of {document['eval_data']}"
    reference = document["reference"]
    console.result_table([name.format(reference) for name in COLUMNS],
                         [_row(stage) for stage in document["stages"]], title)
    _show_more(document)
    from phicli.steps.telling import judged

    console.note(judged(document["stages"]))
    for line in LEGEND:
        console.note(line.replace("original", reference) if reference != "original" else line)
    if document["cut_rows"]:
        console.warn(f"{document['cut_rows']} rows are longer than {document['seq_len']} tokens and were cut")
    return after


def _row(stage: dict[str, Any]) -> tuple[Any, ...]:
    if stage["missing"]:
        return (f"{stage['stage']} ({stage['missing']})", *([None] * 7))
    return (stage["stage"], console.size(stage["bytes"]), _sure(stage, "perplexity", console.number),
            _sure(stage, "kl", _small), _sure(stage, "top1", "{:.1%}".format), _sure(stage, "kl_torch", _small),
            _sure(stage, "top1_torch", "{:.1%}".format), _sure(stage, "perplexity_ratio", _small))


def _sure(stage: dict[str, Any], figure: str, text: Callable[[float], str]) -> str | None:
    """A figure and its interval: "80.2 (71.5 to 90.1)"."""
    if stage[figure] is None:
        return None
    between = stage[f"{figure}_interval"]
    return text(stage[figure]) + (f" ({text(between[0])} to {text(between[1])})" if between else "")


def _small(value: float) -> str:
    return console.number(value, 3)


def _show_more(document: dict[str, Any]) -> None:
    """Metrics and tasks by stage, and the answers side by side."""
    there = [stage for stage in document["stages"] if not stage["missing"]]
    named = {f"{kind}: {name}" if kind else name: (of, name) for of, kind in (("metrics", ""), ("tasks", "task"))
             for name in there[0][of]}
    if named:
        console.result_table(("stage", *named), [
            (stage["stage"], *(_figures(stage[of][name]) for of, name in named.values())) for stage in there])
    if document["answers"]:
        stages = [stage["stage"] for stage in there]
        console.result_table(("question", "reference", *stages), [
            (one["prompt"], one["reference"], *(one["answers"][name] for name in stages))
            for one in document["answers"]])


def _figures(found: dict[str, Any]) -> str:
    if "value" in found:
        return _sure({"value": found["value"], "value_interval": found["interval"]}, "value", _small) or ""
    return ", ".join(f"{name.partition(',')[0]} {_small(value)}" for name, value in found.items()
                     if name.partition(",")[0] not in ("alias", "sample_len"))
