"""A model of transformers without weights, made from config.json alone, to compare a checkpoint with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from phicli.errors import BadInput
from phicli.hub.models import read_headers
from phicli.workflow.wording import worded

CANNOT_LOAD = "transformers cannot load this model"


def skeleton(folder: Path, dtype: torch.dtype | None = None) -> Any:
    """The causal language model of a folder on the meta device, unquantized. dtype: of its weights.

    Raises:
        BadInput: transformers does not know the architecture, or cannot build it from this config.json.
    """
    with worded(CANNOT_LOAD, folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=dtype)


def check_tensors(folder: Path) -> None:
    """Check an unquantized checkpoint by the names and shapes that transformers expects, as `check_names` does.

    Those that transformers puts together from others while loading (experts) are left to it.
    """
    model = skeleton(folder)
    if not get_checkpoint_conversion_mapping(model.config.model_type):
        check_names(model, {name: entry["shape"] for name, entry in read_headers(folder).items()}, folder)


def check_names(model: nn.Module, shapes: Mapping[str, list[int]], folder: Path) -> None:
    """Check that a checkpoint has the tensors of a model, by name and shape.

    Raises:
        BadInput: one is missing (the output projection may be, where it is the embedding), or has another shape.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, tensor in model.state_dict().items():
        if name not in shapes:
            if name in tied:
                continue
            raise BadInput(f"no tensor {name}: the weights do not fit config.json", where=folder,
                           hint="weights under the names that transformers gives them")
        if list(tensor.shape) != shapes[name]:
            raise BadInput(f"{name} is {shapes[name]}, by config.json {list(tensor.shape)}", where=folder,
                           hint="config.json and weights of the same model")
