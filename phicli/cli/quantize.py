"""`phicli quantize`: a model's weights to int4."""

from dataclasses import asdict
from typing import Annotated

from phicli.cli import console, options
from phicli.cli.options import option
from phicli.settings import Settings


def quantize(
    model: options.Model = None,
    algorithm: Annotated[str | None, option("quantize", "algorithm", "--algorithm", "-a")] = None,
    implementation: Annotated[str | None, option("quantize", "implementation")] = None,
    bits: Annotated[int | None, option("quantize", "bits")] = None,
    group_size: Annotated[int | None, option("quantize", "group_size")] = None,
    symmetric: Annotated[bool | None, option("quantize", "symmetric", "--symmetric/--asymmetric")] = None,
    skip: Annotated[list[str] | None, option("quantize", "skip")] = None,
    rounding: Annotated[str | None, option("quantize", "rounding")] = None,
    distill: Annotated[int | None, option("quantize", "distill")] = None,
    calibration: Annotated[str | None, option("quantize", "calibration")] = None,
    text_template: options.TextTemplate = None,
    samples: Annotated[int | None, option("quantize", "samples")] = None,
    seq_len: Annotated[int | None, option("quantize", "seq_len")] = None,
    plan: Annotated[str | None, option("quantize", "plan")] = None,
    save_plan: Annotated[str | None, option("quantize", "save_plan")] = None,
    device: options.Device = None,
    seed: options.Seed = None,
    root: options.Root = None,
    output: options.Output = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Quantize a model to int4 (AWQ by default)."""
    settings = Settings().resolve("quantize", {k: v for k, v in locals().items() if k != "json"})
    with console.working("quantize", settings.root) as progress:
        from phicli.steps.quantize import quantize as quantize_model

        folder, manifest = quantize_model(**vars(settings), progress=progress)
    if json:
        console.result_json({"folder": str(folder), **asdict(manifest)})
        return
    console.result(str(folder))
    before, errors = manifest.quality["source_bytes"], manifest.quality.get("layer_errors")
    line = f"{console.size(before)} -> {console.size(manifest.bytes)} in {console.duration(manifest.seconds)}"
    if errors:
        line += f", output error of a layer {sum(errors) / len(errors):.2%} (worst {max(errors):.2%})"
    if manifest.quality.get("distilled"):
        line += ", KL to the original {:.4f} -> {:.4f}".format(*manifest.quality["distilled"])
    console.note(line)
