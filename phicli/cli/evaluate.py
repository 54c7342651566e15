"""`phicli evaluate`: how well each stage does on held-out rows."""

from typing import Annotated, Any

from phicli.cli import console, options
from phicli.cli.options import option
from phicli.settings import Settings

COLUMNS = ("stage", "size", "perplexity", "KL to original", "top-1 as original", "KL to torch", "top-1 as torch",
           "seconds")


def evaluate(
    model: options.Model = None,
    root: options.Root = None,
    eval_data: options.EvalData = None,
    text_template: options.TextTemplate = None,
    algorithm: Annotated[str | None, option("quantize", "algorithm")] = None,
    adapter: Annotated[str | None, option("", "adapter", "--adapter", "-a")] = None,
    rows: Annotated[int | None, option("evaluate", "rows")] = None,
    seq_len: Annotated[int | None, option("evaluate", "seq_len")] = None,
    device: options.Device = None,
    kernels: options.Kernels = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure every stage on held-out rows: perplexity, and agreement with the original."""
    flags = {k: v for k, v in locals().items() if k not in ("json", "algorithm")}
    s = Settings().resolve("evaluate", flags)
    s.algorithm = Settings().resolve("quantize", {"algorithm": algorithm}).algorithm
    with console.working("evaluate", s.root) as progress:
        from phicli.evaluation import evaluate as evaluate_stages

        document = evaluate_stages(**vars(s), progress=progress)
    if json:
        console.result_json(document)
        return
    title = f"{document['rows']} rows, {document['tokens']} response tokens of {document['eval_data']}"
    console.result_table(COLUMNS, [_row(stage) for stage in document["stages"]], title)
    if document["cut_rows"]:
        console.warn(f"{document['cut_rows']} rows are longer than {document['seq_len']} tokens and were cut")


def _row(stage: dict[str, Any]) -> tuple[Any, ...]:
    if stage["missing"]:
        return (f"{stage['stage']} ({stage['missing']})", *([None] * 7))
    shares = {key: None if stage[key] is None else f"{stage[key]:.1%}" for key in ("top1", "top1_torch")}
    return (stage["stage"], console.size(stage["bytes"]), f"{stage['perplexity']:.4g}", _small(stage["kl"]),
            shares["top1"], _small(stage["kl_torch"]), shares["top1_torch"], f"{stage['seconds']:.1f}")


def _small(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
