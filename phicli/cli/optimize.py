"""`phicli optimize`: one ONNX model with swappable adapters."""

from collections.abc import Sequence
from dataclasses import asdict

from phicli.artifacts.names import ONNX_FOLDER
from phicli.cli import console, forecasts, options
from phicli.cli.following import Elsewhere, Next
from phicli.config.steps import OptimizeConfig


def optimize(config: OptimizeConfig, flags: options.Flags, dry_run: options.DryRun = False,
             json: options.Json = False) -> Sequence[Next]:
    """Build the ONNX model that chat runs: from a quantized model and any number of adapters.

    Examples:
      phicli optimize --model tiny
      phicli optimize --adapter travel --device cuda
    More: docs/optimize.md
    """
    if dry_run:
        forecasts.show_step("optimize", flags, json)
        return [("optimize",)]
    with console.task_log("optimize", config.root_folder) as progress:
        from phicli.steps.optimize import optimize as build
        from phicli.steps.telling import built

        folder, manifest = build(config, progress)
    adapters = sorted(manifest.quality["adapters"])
    place = ["--path", str(folder)] if folder != config.root_folder / ONNX_FOLDER else []
    commands = [("chat", *(["--adapter", adapters[-1]] if adapters else []), *place),
                *([] if place else [("evaluate",)])]
    from phicli.inference.devices import lacking

    lacks = lacking(manifest.settings["device"])
    after: list[Next] = [Elsewhere(lacks, one) if lacks else one for one in commands]
    if json:
        console.result_json({"folder": str(folder), **asdict(manifest)})
        return after
    console.result(str(folder))
    console.note(f"{built(folder, manifest)}; {console.duration(manifest.seconds)}")
    return after
