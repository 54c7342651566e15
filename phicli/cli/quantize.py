"""`phicli quantize`: a model's weights to int4."""

from collections.abc import Sequence
from dataclasses import asdict

from phicli.cli import console, forecasts, options
from phicli.cli.following import Next
from phicli.config.steps import QUANTIZE_ALGORITHMS, QuantizeConfig


def quantize(config: QuantizeConfig, flags: options.Flags, dry_run: options.DryRun = False,
             json: options.Json = False) -> Sequence[Next]:
    """Quantize a model to int4 (AWQ by default).

    Examples:
      phicli quantize --model tiny
      phicli quantize --model Qwen/Qwen3-0.6B --algorithm awq --device cuda
    More: docs/quantize.md
    """
    if dry_run:
        forecasts.show_step("quantize", flags, json)
        return [("quantize",)]
    with console.task_log("quantize", config.root_folder) as progress:
        from phicli.steps.quantize import quantize as quantize_model
        from phicli.steps.telling import quantized

        folder, manifest = quantize_model(config, progress)
    usual = folder == config.root_folder / QUANTIZE_ALGORITHMS[0]  # which finetune looks for first
    after = [("finetune", *([] if usual else ["--base", str(folder)]))]
    if json:
        console.result_json({"folder": str(folder), **asdict(manifest)})
        return after
    console.result(str(folder))
    errors = manifest.quality.get("layer_errors")
    line = f"{quantized(folder, manifest)}; {console.duration(manifest.seconds)}"
    if errors:
        line += f", output error of a layer {sum(errors) / len(errors):.2%} (worst {max(errors):.2%})"
    if manifest.quality.get("refined"):
        before, left = manifest.quality["refined"]
        line += f"; refining left {left / before:.0%} of a layer's squared error" if before else ""
    console.note(line)
    return after
