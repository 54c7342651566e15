"""Loading a base model to train on: unquantized, an AWQ checkpoint, or one of Olive's int4 checkpoints.

transformers 5 reads AWQ only through gptqmodel, and Olive's linears are none that peft knows. So while `load_base`
runs, and only then, both quantization methods are mapped to a quantizer of our own, which puts `Int4Linear` in place.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging as hf_logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from phicli.artifacts.tensors import check_safetensors
from phicli.checkpoints.awq import low_first
from phicli.checkpoints.int4 import Int4Linear, unpack
from phicli.checkpoints.skeleton import CANNOT_LOAD, skeleton
from phicli.errors import BadInput
from phicli.hardware.devices import available_memory
from phicli.hub.models import check_model, weight_files
from phicli.resources import keeps_unpacked
from phicli.workflow.patching import replaced
from phicli.workflow.wording import worded

DTYPES = {"I32": torch.int32, "U8": torch.uint8, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def load_base(folder: Path, device: str, dtype: torch.dtype, unpacked: bool = True) -> PreTrainedModel:
    """Load a causal language model, frozen, for training adapters or for measuring.

    Quantized linears become `Int4Linear`. Their unpacked weights are kept beside the integers if those of the whole
    model fit into a quarter of the memory that is free on the device; otherwise they are made at each use.

    Args:
        folder: a Hugging Face model folder. device: "cpu" or "cuda". dtype: of computation. unpacked: False never keeps
            them.

    Raises:
        BadInput: an incomplete folder, an unknown quantization or architecture, weights that do not fit the config.
    """
    check_base(folder)
    with _own_quantizers(), replaced(hf_logging, "_tqdm_active", False), worded(CANNOT_LOAD, folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, output_loading_info=True, local_files_only=True,
            use_safetensors=True, trust_remote_code=False,
        )
    model, found = loaded
    wrong = sorted({*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])})
    if wrong:
        raise BadInput(f"weights missing or of another shape: {_some(wrong)}", where=folder)
    model.requires_grad_(False)
    model.eval()
    packed = [m for m in model.modules() if isinstance(m, Int4Linear)]
    dense_bytes = sum(m.in_features * m.out_features for m in packed) * dtype.itemsize
    if unpacked and keeps_unpacked(dense_bytes, available_memory(device)):
        for module in packed:
            module.keep_dense()
    return model


def empty_base(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model that `load_base` gives, without content: its tensors are on the meta device."""
    method = (check_base(folder).get("quantization_config") or {}).get("quant_method")
    model: PreTrainedModel = skeleton(folder, dtype)
    if method:
        _put_packed(model, [str(file) for file in weight_files(folder)])
        _settle_packed(model, method)
    model.requires_grad_(False)
    return model.eval()


def check_base(folder: Path) -> dict[str, Any]:
    """Check, without loading it, that the folder holds a model that `load_base` can load; returns its config.

    Raises:
        BadInput: an incomplete folder, or a quantization that cannot be trained on.
    """
    config = check_model(folder)
    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method")
    if quantization and method not in QUANT_METHODS:
        raise BadInput(f"quantization '{method}' cannot be trained on", where=folder / "config.json",
                       hint="phicli quantize", also=["an unquantized model"])
    if method == "awq" and (quantization.get("version", "gemm").lower(), quantization.get("bits", 4)) != ("gemm", 4):
        raise BadInput("AWQ of another version than 4-bit gemm", where=folder / "config.json",
                       hint="phicli quantize --algorithm awq")
    return config


def linear_names(folder: Path) -> list[str]:
    """Full names of the linears in a model's layers, output projection excluded, from its config alone.

    Raises:
        BadInput: transformers does not know the architecture, or it has no linears.
    """
    model = skeleton(folder)
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not names:
        raise BadInput(f"{type(model).__name__} has no linear layers to adapt", where=folder)
    return names


@contextlib.contextmanager
def _own_quantizers() -> Iterator[None]:
    """Map the quantization methods to ours; afterwards the mappings are as they were, Olive's own included."""
    mappings: tuple[dict[str, Any], ...] = (auto.AUTO_QUANTIZATION_CONFIG_MAPPING, auto.AUTO_QUANTIZER_MAPPING)
    before = [dict(mapping) for mapping in mappings]
    try:
        for mapping, own in zip(mappings, (PackedConfig, PackedQuantizer), strict=True):
            mapping.update(dict.fromkeys(QUANT_METHODS, own))
        yield
    finally:
        for mapping, content in zip(mappings, before, strict=True):
            mapping.clear()
            mapping.update(content)


class PackedConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json, kept as it is: shapes in the weight files say the rest."""

    def __init__(self, **values: Any):
        self.values = values
        self.quant_method = values["quant_method"]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.values)


class PackedQuantizer(HfQuantizer):
    """Puts an `Int4Linear` wherever the checkpoint has a `qweight`."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        _put_packed(model, kwargs["checkpoint_files"])

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        _settle_packed(model, self.quantization_config.quant_method)
        return model

    def is_serializable(self, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _put_packed(model: PreTrainedModel, files: list[str]) -> None:
    for name, tensors in _packed_tensors(files).items():
        parent, _, child = name.rpartition(".")
        try:
            linear = model.get_submodule(name)
        except AttributeError:
            raise BadInput(f"{name}: the architecture has no such module") from None
        if not isinstance(linear, nn.Linear):
            raise BadInput(f"{name}: a quantized {type(linear).__name__} cannot be trained on")
        if "scales" not in tensors:
            raise BadInput(f"weights missing: {name}.scales")
        module = Int4Linear(linear.in_features, linear.out_features, tensors, linear.weight.dtype)
        setattr(model.get_submodule(parent), child, module)


def _settle_packed(model: PreTrainedModel, method: str) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Int4Linear):
            packed, scales, zeros, bits = QUANT_METHODS[method](module)
            module.settle(packed, scales, zeros, bits)
            out, width, groups = module.out_features, module.in_features, scales.shape[1]
            if packed.shape != (out, width * bits // 8) or scales.shape != zeros.shape or width % groups:
                raise BadInput(f"{name}: packed weights of another shape than the config says")


def _packed_tensors(files: list[str]) -> dict[str, dict[str, Tensor]]:
    """Empty tensors with the shapes and dtypes of each packed linear's: module -> tensor name -> tensor."""
    headers: dict[str, Any] = {}
    for file in files:
        headers.update(check_safetensors(Path(file)))
    modules = [name.removesuffix(".qweight") for name in headers if name.endswith(".qweight")]
    return {
        module: {
            name: torch.empty(headers[f"{module}.{name}"]["shape"], device="meta",
                              dtype=DTYPES[headers[f"{module}.{name}"]["dtype"]])
            for name in ("qweight", "scales", "qzeros", "bias") if f"{module}.{name}" in headers
        }
        for module in modules
    }


def _from_awq(linear: Int4Linear) -> tuple[Tensor, Tensor, Tensor, int]:
    """AWQ gemm: qweight int32 (in, out / 8), scales (groups, out), qzeros int32 (groups, out / 8) or none."""
    scales = linear.scales.t().contiguous()
    if linear.qzeros is None:
        zeros = torch.full_like(scales, 8, dtype=torch.uint8)
    else:
        zeros = unpack(low_first(linear.qzeros), 4)[:, : scales.shape[1]].contiguous()
    return low_first(linear.qweight), scales, zeros, 4


def _from_olive(linear: Int4Linear) -> tuple[Tensor, Tensor, Tensor, int]:
    """Olive: qweight uint8 (out, in * bits / 8), scales (out, groups), qzeros uint8 (out, packed groups) or none."""
    bits = 8 * linear.qweight.shape[1] // linear.in_features
    if linear.qzeros is None:
        zeros = torch.full_like(linear.scales, 1 << (bits - 1), dtype=torch.uint8)
    else:
        zeros = unpack(linear.qzeros, bits)[:, : linear.scales.shape[1]].contiguous()
    return linear.qweight, linear.scales, zeros, bits


QUANT_METHODS = {"awq": _from_awq, "olive": _from_olive}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
