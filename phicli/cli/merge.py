"""`phicli merge`: an adapter into the weights of a model."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.exporting import MergeConfig


def merge(config: MergeConfig, json: options.Json = False) -> Sequence[Next]:
    """Merge an adapter into a model's weights: gives a folder that every step takes as --model or --base.

    Examples:
      phicli merge --model tiny --adapter travel
      phicli merge --adapter travel --precision int4
    More: docs/merge.md
    """
    with console.task_log("merge", config.root_folder) as progress:
        from phicli.steps.merge import merge as merge_adapter

        folder, manifest = merge_adapter(config, progress)
    after = _after(config, folder)
    if json:
        console.result_json({"folder": str(folder), **asdict(manifest)})
        return after
    console.result(str(folder))
    line = f"{console.size(manifest.bytes)} in {console.duration(manifest.seconds)}"
    if errors := manifest.quality.get("layer_errors"):
        line += f", output error of a layer {sum(errors) / len(errors):.2%} (worst {max(errors):.2%})"
    console.note(line)
    return after


def _after(config: MergeConfig, folder: Path) -> list[Next]:
    if config.precision == "float":
        device = [] if config.device == "auto" else ["--device", config.device]
        return [shlex.join(["phicli", "quantize", "--model", str(folder), *device])]
    if config.output:  # where `optimize --merge` does not look
        return []
    base = ["--base", config.base] if config.base else []
    return [("optimize", "--merge", config.adapter or folder.name.removesuffix(f"-{config.precision}"), *base)]
