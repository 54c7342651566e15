"""An adapter put into the weights of a model: LoRA tensor by tensor, from files to files; other kinds by peft."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from phicli.architectures import in_layer
from phicli.artifacts.names import ADAPTER_CONFIG
from phicli.checkpoints.adapter_names import COPY, plain
from phicli.checkpoints.adapter_settings import UNMERGEABLE, check_patterns, read_settings
from phicli.checkpoints.int4 import Int4Linear
from phicli.checkpoints.linears import linear_shapes
from phicli.checkpoints.loading import QUANT_METHODS, check_base, load_base
from phicli.checkpoints.peft_folder import WEIGHTS, Lora, check_weights, weights_path
from phicli.errors import BadInput
from phicli.progress import SILENT, Progress
from phicli.quantization.quantize import save_metadata
from phicli.quantization.shards import ShardWriter
from phicli.quantization.streaming import Weights
from phicli.workflow.wording import worded

# Settings of an adapter by which peft would import modules, or fetch other models; nothing of its update.
NOT_PASSED_ON = ("auto_mapping", "base_model_name_or_path", "revision", "megatron_config", "megatron_core",
                 "runtime_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config")
BESIDE = ("qzeros", "scales")  # a packed linear's tensors beside its qweight


def merge_lora(folder: Path, loras: Mapping[str, Lora], output: Path, progress: Progress = SILENT) -> None:
    """Write a model in floating point: a checkpoint's weights W, unpacked where they are int4, as W + scaling * B A.

    One tensor at a time is computed, in float32, and a shard of the files is held. Tensors keep their dtype, those of
    int4 checkpoints are float16.

    Args:
        folder: a checkpoint in floating point, AWQ's or Olive's. loras: as `read_peft` gives them, of this model.

    Raises:
        BadInput: an adapter for another model, or weights that overflow their dtype.
    """
    left = {in_layer(name): lora for name, lora in loras.items()}
    quantized = bool(check_base(folder).get("quantization_config"))
    weights, shapes = Weights(folder), linear_shapes(folder)
    names = [name for name in weights.names() if not _beside_packed(name, weights)]
    with ShardWriter(output, dtype=torch.float16 if quantized else None) as writer:
        with progress.task("merge", len(names), "tensors") as task:
            for name in names:
                module, _, kind = name.rpartition(".")
                tensor: Any = (packed_linear(module, weights, shapes).weight if kind == "qweight" else
                               next(weights.load([name]))[1])
                lora = left.pop(in_layer(module), None) if kind in ("weight", "qweight") and in_layer(module) else None
                writer.add(f"{module}.weight" if kind == "qweight" else name,
                           tensor if lora is None else _updated(tensor, lora, module, folder))
                task.advance(1)
        writer.finish()
    if left:
        raise BadInput(f"an adapter for another model: it has no linear {next(iter(left))}", where=folder)
    save_metadata(folder, output, None)


def _beside_packed(name: str, weights: Weights) -> bool:
    module, _, kind = name.rpartition(".")
    return kind in BESIDE and f"{module}.qweight" in weights.file_of


def packed_linear(module: str, weights: Weights, shapes: Mapping[str, tuple[int, int]]) -> Int4Linear:
    """A packed linear of a checkpoint, float16, settled. shapes: as `linear_shapes` gives them."""
    found, method = in_layer(module), "awq" if weights.dtypes[f"{module}.qweight"] == "I32" else "olive"
    if found is None:
        raise BadInput(f"{module}: quantized outside the layers, which cannot be merged into", where=weights.folder)
    inputs, outputs = shapes[f"layers.{found[0]}.{found[1]}"]
    stored = {kind: tensor for kind in ("qweight", *BESIDE) if f"{module}.{kind}" in weights.file_of
              for _, tensor in weights.load([f"{module}.{kind}"])}
    linear = Int4Linear(inputs, outputs, stored, torch.float16)
    linear.settle(*QUANT_METHODS[method](linear))
    return linear


def _updated(weight: Tensor, lora: Lora, module: str, folder: Path) -> Tensor:
    a, b = (torch.from_numpy(np.array(matrix, np.float32)) for matrix in (lora.a, lora.b))
    if weight.shape != (len(b), a.shape[1]):
        raise BadInput(f"an adapter for another model: {module} is {list(weight.shape)}, its update "
                       f"{[len(b), a.shape[1]]}", where=folder)
    return torch.addmm(weight.float(), b, a, alpha=lora.scaling).to(weight.dtype)


def merge_any(folder: Path, adapter: Path, output: Path, progress: Progress = SILENT) -> None:
    """Write the model in floating point that peft's `merge_and_unload` gives, for adapters that are not plain LoRA.

    The whole model is in memory, in the checkpoint's dtype. An output projection that shares its weights with the
    embedding gets its own, if one of them is adapted.

    Raises:
        BadInput: peft cannot merge the adapter, or not into this model.
    """
    with tempfile.TemporaryDirectory(prefix=".float-", dir=output.parent) as scratch:
        if check_base(folder).get("quantization_config"):
            merge_lora(folder, {}, Path(scratch), progress)
            folder = Path(scratch)
        dtype = next(Weights(folder).load([*Weights(folder).file_of][:1]))[1].dtype
        model: Any = load_base(folder, "cpu", dtype)
        untied = _untie(model, adapter)
        with tempfile.TemporaryDirectory(prefix=".adapter-", dir=output.parent) as settled:
            _write_settled(adapter, Path(settled))
            with worded("peft cannot merge this adapter into this model", adapter):
                adapted = PeftModel.from_pretrained(model, settled, is_trainable=False)
                whole = adapted.merge_and_unload(safe_merge=True)
        tied = {} if untied else getattr(whole, "all_tied_weights_keys", None) or {}
        with ShardWriter(output, dtype=None) as writer:
            for name, tensor in whole.state_dict().items():
                if name not in tied:
                    writer.add(name, tensor)
            writer.finish()
        save_metadata(folder, output, None, **({"tie_word_embeddings": False} if untied else {}))


def _untie(model: Any, adapter: Path) -> bool:
    """Give the output projection weights of its own, if it has the embedding's and the adapter changes one of them."""
    settings, head = read_settings(adapter), model.get_output_embeddings()
    touches = any(COPY.fullmatch(re.sub(r"\.lora_.*", ".weight", plain(name))) for name in check_weights(adapter))
    if (not touches or head is None or head.weight is not model.get_input_embeddings().weight
            or settings.get("ensure_weight_tying")):
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    return True


def _write_settled(adapter: Path, folder: Path) -> None:
    """An adapter's folder for peft: the same weights, and settings that import and fetch nothing."""
    settings = read_settings(adapter)
    check_patterns(adapter)
    check_weights(adapter)
    if (method := str(settings["peft_type"]).upper()) in UNMERGEABLE:
        raise BadInput(f"adapters of the method {method} change no weights", where=adapter)
    if weights_path(adapter).name != WEIGHTS:
        raise BadInput("of mlx-lm's adapters only LoRA can be merged", where=adapter)
    kept = {name: value for name, value in settings.items() if name not in NOT_PASSED_ON}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(kept), encoding="utf-8")
    shutil.copyfile(weights_path(adapter), folder / WEIGHTS)
