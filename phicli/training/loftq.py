"""LoftQ's start of an adapter: what the quantization took away, as far as the rank reaches.

LoftQ (Li et al., 2023, arXiv:2310.08659) alternates between quantizing W - BA and taking BA from the singular
vectors of W - Q. Here Q is fixed, since the base is quantized already, so one step of the second kind is all of it.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from phicli.artifacts.tensors import check_safetensors
from phicli.errors import BadInput
from phicli.hub.models import weight_files

LARGEST_ERROR = 0.5  # relative; 4-bit rounding gives about 0.1, another model's weights or rotated ones more than 1


@torch.no_grad()
def start_from_residual(adapted: Any, original: Path) -> None:
    """Set A and B of every LoRA layer so that base + scaling * B A is as near to the original weight as can be.

    Args:
        adapted: PeftModel with LoRA on a quantized base. original: folder of the unquantized model.

    Raises:
        BadInput: a weight is missing in the original, or the base is no plain rounding of it (rotations change the
            weights first).
    """
    files = {name: path for path in weight_files(original) for name in check_safetensors(path)}
    base = adapted.get_base_model()
    for name, module in base.named_modules():
        if "default" not in getattr(module, "lora_A", {}):
            continue
        quantized = module.get_base_layer().weight.float()
        weight = _weight(files, f"{name}.weight", original)
        if weight.shape != quantized.shape:
            raise BadInput(f"{name} has another shape than in the base", where=original,
                           hint="--model with the model that was quantized")
        residual = weight.to(quantized.device).float() - quantized
        if residual.norm() > LARGEST_ERROR * quantized.norm():
            raise BadInput(f"{name}: the base is no plain rounding of this model, as LoftQ needs", where=original,
                           hint="--model with the model that was quantized",
                           also=["phicli quantize --algorithm gptq", "phicli quantize --algorithm rtn"])
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        rank = min(a.shape[0], *residual.shape)
        u, s, v = torch.svd_lowrank(residual, q=min(rank + 8, *residual.shape), niter=4)
        root = s[:rank].sqrt()
        a.zero_()[:rank] = (v[:, :rank] * root).t().to(a.dtype)
        b.zero_()[:, :rank] = (u[:, :rank] * root / module.scaling["default"]).to(b.dtype)


def _weight(files: dict[str, Path], name: str, original: Path) -> Tensor:
    if name not in files:
        raise BadInput(f"no {name} in it", where=original)
    with safe_open(files[name], "pt") as file:
        return file.get_tensor(name)
