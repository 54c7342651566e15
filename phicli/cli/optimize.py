"""`phicli optimize`: one ONNX model with swappable adapters."""

from dataclasses import asdict
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.options import option
from phicli.settings import Settings


def optimize(
    model: options.Model = None,
    base: Annotated[str | None, option("optimize", "base", "--base", "-b")] = None,
    adapters: Annotated[list[str] | None, typer.Option(
        "--adapter", "-a", metavar="NAME=FOLDER",
        help="Adapter to put beside the model; may be repeated (default: all under the root)")] = None,
    device: Annotated[str | None, option("optimize", "device")] = None,
    activations: Annotated[str | None, option("optimize", "activations")] = None,
    head: Annotated[str | None, option("optimize", "head")] = None,
    adapter_layout: Annotated[str | None, option("optimize", "adapter_layout")] = None,
    adapter_weights: Annotated[str | None, option("optimize", "adapter_weights")] = None,
    cuda_graph: Annotated[bool | None, option("optimize", "cuda_graph", "--cuda-graph/--no-cuda-graph")] = None,
    root: options.Root = None,
    output: options.Output = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Build the ONNX model that chat runs, from a quantized model and any number of adapters."""
    settings = Settings().resolve("optimize", {k: v for k, v in locals().items() if k != "json"})
    with console.working("optimize", settings.root) as progress:
        from phicli.steps.optimize import optimize as build

        folder, manifest = build(**{k: v for k, v in vars(settings).items() if k != "model"}, progress=progress)
    if json:
        console.result_json({"folder": str(folder), **asdict(manifest)})
        return
    console.result(str(folder))
    names = ", ".join(sorted(manifest.quality["adapters"])) or "none"
    console.note(f"{console.size(manifest.bytes)} in {console.duration(manifest.seconds)}; adapters: {names}")
