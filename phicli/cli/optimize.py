"""`phicli optimize`: one ONNX model with swappable adapters."""

from dataclasses import asdict

from phicli.cli import console, options
from phicli.config.steps import OptimizeConfig


def optimize(config: OptimizeConfig, json: options.Json = False) -> None:
    """Build the ONNX model that chat runs, from a quantized model and any number of adapters.

    Examples:
      phicli optimize --model tiny
      phicli optimize --adapter travel --device cuda
    More: docs/optimize.md
    """
    with console.task_log("optimize", config.root_folder) as progress:
        from phicli.steps.optimize import optimize as build
        from phicli.steps.telling import built

        folder, manifest = build(config, progress)
    if json:
        console.result_json({"folder": str(folder), **asdict(manifest)})
        return
    console.result(str(folder))
    console.note(f"{built(folder, manifest)}; {console.duration(manifest.seconds)}")
