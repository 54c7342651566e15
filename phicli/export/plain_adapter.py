"""An adapter as every reader of PEFT takes it: float16, one rank and one scale for all linears."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from phicli.artifacts.names import ADAPTER_CONFIG
from phicli.checkpoints.peft_folder import WEIGHTS, Lora
from phicli.export.groups import fitted


def write_adapter(loras: Mapping[str, Lora], output: Path, base_name: str) -> None:
    """Fill a folder with adapter_config.json and adapter_model.safetensors.

    All matrices get the largest rank, filled up with zeros, and the scaling is folded into B: readers that know one
    rank and alpha for all compute the same.

    Raises:
        BadInput: a value that float16 cannot hold.
    """
    from safetensors.numpy import save_file

    rank = max(lora.rank for lora in loras.values())
    tensors = {}
    for name, lora in loras.items():
        a = np.zeros((rank, lora.a.shape[1]), np.float32)
        b = np.zeros((len(lora.b), rank), np.float32)
        a[: lora.rank], b[:, : lora.rank] = lora.a, lora.b.astype(np.float32) * lora.scaling
        for side, matrix in (("A", a), ("B", b)):
            tensors[f"base_model.model.{name}.lora_{side}.weight"] = fitted(matrix, np.dtype(np.float16))
    save_file(tensors, output / WEIGHTS, {"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "r": rank,
                "lora_alpha": rank, "target_modules": sorted({name.rpartition(".")[2] for name in loras}),
                "lora_dropout": 0.0, "bias": "none", "inference_mode": True}
    (output / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
