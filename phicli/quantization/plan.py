"""What AWQ's searches found, apart from what is done with it: searched once, saved, applied as often as one likes.

A plan's file is safetensors. Per layer: `<producer>.channel_scale` float32 (in,) of each scaling, and for each linear
the grid of its clipped ranges, `<linear>.scale` float16 and `<linear>.zero` uint8, both (out, groups). Its metadata
say for which model, how and on what it was searched.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from phicli.artifacts.places import check_file_place
from phicli.artifacts.stages import publishing_file
from phicli.artifacts.tensors import check_safetensors
from phicli.errors import BadInput
from phicli.quantization.grid import GridShape
from phicli.quantization.shards import save_tensors
from phicli.quantization.streaming import Weights
from phicli.version import __version__

KIND = "phicli-awq-plan-1"
SAMPLE_ROWS = 1  # of each tensor, that identify a model


@dataclass
class LayerPlan:
    """What was found for one layer, by the names in it.

    scales: producer -> float32 (in,), what its consumers' inputs are multiplied by.
    grids: linear -> scale and zero point, float32 (out, groups).
    """

    scales: dict[str, Tensor] = field(default_factory=dict)
    grids: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


    def to(self, device: torch.device) -> "LayerPlan":
        grids = {name: (scale.to(device), zero.to(device)) for name, (scale, zero) in self.grids.items()}
        return LayerPlan({name: scale.to(device) for name, scale in self.scales.items()}, grids)


@dataclass
class AwqPlan:
    """The plan of a model. layers: by prefix ("model.layers.0."). about: the file's metadata, see `describe`."""

    about: dict[str, str]
    layers: dict[str, LayerPlan] = field(default_factory=dict)


def describe(weights: Weights, shape: GridShape, skip: Iterable[str], calibration: str) -> dict[str, str]:
    """What a plan is for: the model, the grid, what is left in float, and a hash of the calibration tokens."""
    return {
        "kind": KIND, "phicli": __version__, "model": model_digest(weights), "bits": str(shape.bits),
        "group_size": str(shape.group_size), "symmetric": str(shape.symmetric).lower(),
        "skip": ",".join(sorted(skip)), "calibration": calibration,
    }


def model_digest(weights: Weights) -> str:
    """A hash of all tensors' names, dtypes, shapes and first rows: the same however the model is cut into files."""
    digest = hashlib.sha256()
    for name, part in weights.first_rows(SAMPLE_ROWS):
        digest.update(name.encode() + part)
    return digest.hexdigest()[:16]


def save_plan(plan: AwqPlan, file: Path) -> str:
    """Write the plan, whole or not at all. Returns the checksum of its tensors, which its metadata hold too.

    Raises:
        BadInput: something else than a plan is there. Missing: no space or no permission.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, layer in plan.layers.items():
        tensors |= {f"{prefix}{name}.channel_scale": scale.cpu() for name, scale in layer.scales.items()}
        for name, (scale, zero) in layer.grids.items():
            tensors[f"{prefix}{name}.scale"] = scale.half().cpu().contiguous()
            tensors[f"{prefix}{name}.zero"] = zero.to(torch.uint8).cpu().contiguous()
    checksum = _checksum(tensors)
    check_plan_place(file)
    with publishing_file(file) as fresh:
        save_tensors(tensors, fresh, {**plan.about, "checksum": checksum})
        check_plan_place(file)
    return checksum


def check_plan_place(file: Path) -> None:
    """Raise BadInput unless nothing is there or a regular file that is a plan."""
    check_file_place(file)
    if file.exists() and _metadata(file).get("kind") != KIND:
        raise BadInput("the file there is no plan of phicli quantize, and stays", where=file,
                       hint="name another file, or move it away")


def load_plan(file: Path, wanted: dict[str, str], prefixes: Iterable[str]) -> dict[str, LayerPlan]:
    """Read the plans of the layers with these prefixes.

    Args:
        wanted: what `describe` says now. The calibration and phicli's version may have been others.

    Raises:
        BadInput: no such file, not a plan, damaged, or for another model or other options.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise BadInput("no such plan", where=file, hint="phicli quantize --save-plan FILE")
    check_safetensors(file)
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as e:
        raise BadInput(f"not readable: {e}", where=file) from None
    if about.get("kind") != KIND:
        raise BadInput("not a plan of phicli quantize", where=file, hint="phicli quantize --save-plan FILE")
    if about.get("checksum") != _checksum(tensors):
        raise BadInput("damaged: its content does not fit its checksum", where=file, hint="save the plan again")
    if about.get("model") != wanted["model"]:
        raise BadInput("the plan was made for another model", where=file)
    for key in ("bits", "group_size", "symmetric", "skip"):
        if about.get(key) != wanted[key]:
            raise BadInput(f"the plan was made with {key} '{about.get(key)}', not '{wanted[key]}'", where=file,
                           hint="the same options as when it was saved, or a new plan")
    return {prefix: _layer(tensors, prefix) for prefix in prefixes}


def saved_checksum(file: Path) -> str | None:
    """The checksum that a plan's file says it has; None for any other file."""
    return _metadata(file).get("checksum")


def _metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says about itself; empty for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        check_safetensors(file)
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except (BadInput, SafetensorError, OSError):
        return {}


def _layer(tensors: dict[str, Tensor], prefix: str) -> LayerPlan:
    mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    linears = [name.removesuffix(".zero") for name in mine if name.endswith(".zero")]
    scales = {n.removesuffix(".channel_scale"): t for n, t in mine.items() if n.endswith(".channel_scale")}
    return LayerPlan(scales, {name: (mine[f"{name}.scale"].float(), mine[f"{name}.zero"].float()) for name in linears})


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
