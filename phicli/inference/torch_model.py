"""A model of transformers with an adapter of PEFT's on it, to be run and not trained."""

import gc
from pathlib import Path
from typing import Any

from phicli.hub.models import read_config, weight_files
from phicli.workflow.wording import worded


def load_torch(folder: Path, device: str, adapter: Path | None = None) -> Any:
    """Load a Hugging Face folder, unquantized or int4, in the most precise type that fits into memory.

    Args:
        device: "auto", "cuda" or "cpu". adapter: a PEFT folder.

    Raises:
        Missing: CUDA asked for and not usable. BadInput: as `load_base`, or an adapter that does not fit.
    """
    import torch

    from phicli.checkpoints.loading import load_base
    from phicli.hardware.devices import choose_device

    device = choose_device(device)
    gc.collect()  # a model before this one may be held by a reference cycle only
    if device == "cuda":
        torch.cuda.empty_cache()
    model: Any = load_base(folder, device, choose_dtype(folder, device))
    if adapter is not None:
        model = _with_adapter(model, adapter)
    return model.eval()


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    from phicli.checkpoints.adapter_settings import check_patterns
    from phicli.checkpoints.peft_folder import check_weights

    check_patterns(folder)
    check_weights(folder)
    with worded("the adapter does not fit the model", folder):
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False)


def choose_dtype(folder: Path, device: str) -> Any:
    """float32 where the model fits into memory so, else the checkpoint's own type.

    In 16 bits the rounding of activations shows up as a KL of about 1e-3, as large as what is looked for.
    """
    import torch

    from phicli.hardware.devices import available_memory

    if 2.5 * sum(path.stat().st_size for path in weight_files(folder)) < available_memory(device):
        return torch.float32
    config = read_config(folder)
    return getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"))
