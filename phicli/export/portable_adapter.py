"""An adapter that was trained on an AWQ checkpoint, for the unquantized model.

AWQ divides channels of a layer and multiplies the inputs of the linears after them. An adapter that was trained on an
AWQ checkpoint reads and writes channels so scaled; for the original both are undone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phicli.architectures import architecture_of, in_layer
from phicli.checkpoints.linears import linear_shapes
from phicli.checkpoints.peft_folder import Lora
from phicli.errors import BadInput
from phicli.hub.models import read_config
from phicli.quantization.merging import packed_linear
from phicli.quantization.scaling import channels
from phicli.quantization.streaming import LayeredModel, Weights


def for_original(loras: Mapping[str, Lora], awq: Path, original: Path) -> dict[str, Lora]:
    """The updates of an adapter that was trained on an AWQ checkpoint, for the model that this was made from.

    Scales of norms are read off exactly, those of linears from rows of integers, to a few thousandths.

    Raises:
        BadInput: the checkpoint is not one of that model.
    """
    config, model = read_config(awq), LayeredModel(original, torch.device("cpu"))
    weights, shapes = Weights(awq), linear_shapes(awq)
    by_layer: dict[int, dict[str, str]] = {}
    for name in loras:
        index, path = in_layer(name) or (0, "")
        by_layer.setdefault(index, {})[path] = name
    found = {}
    for index, paths in sorted(by_layer.items()):
        layer, prefix = model.load_layer(index), model.prefix_of(index)
        inputs, outputs = _scales(config["model_type"], model.config, layer, prefix, weights, shapes)
        layer.to("meta")
        for path, name in paths.items():
            lora = loras[name]
            into, out = (side.get(path) for side in (inputs, outputs))
            a = lora.a if into is None else lora.a.astype(np.float32) / into.numpy()
            b = lora.b if out is None else lora.b.astype(np.float32) * out.numpy()[:, None]
            found[name] = Lora(a, b, lora.scaling)
    return found


@torch.no_grad()
def _scales(family: str, config: Any, layer: Any, prefix: str, weights: Weights,
            shapes: Mapping[str, tuple[int, int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What AWQ has multiplied the inputs of a layer's linears by, and divided their outputs by, float32, by path."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for scaling in architecture_of(family).scalings:
        rows, producer = channels(scaling, layer, config), layer.get_submodule(scaling.producer)
        before = producer.weight.float()
        after = _weight(prefix + scaling.producer, weights, shapes)
        if before.shape != after.shape:
            raise BadInput(f"{prefix}{scaling.producer} is not of the model that it was quantized from",
                           where=weights.folder)
        if before.dim() == 1:
            plus = float(scaling.kind == "norm_plus_one")
            divided = (before + plus) / (after + plus)
        else:
            before = before * inputs.get(scaling.producer, torch.ones(1))
            divided = (before * before).sum(1) / (before * after).sum(1)
            outputs[scaling.producer] = torch.ones(len(before))
            outputs[scaling.producer][rows] = divided[rows]
        inputs |= dict.fromkeys(scaling.consumers, divided[rows])
    return inputs, outputs


def _weight(module: str, weights: Weights, shapes: Mapping[str, tuple[int, int]]) -> Tensor:
    if f"{module}.qweight" in weights.file_of:
        weight = packed_linear(module, weights, shapes).weight
        assert weight is not None
        return weight.float()
    return next(weights.load([f"{module}.weight"]))[1].float()
