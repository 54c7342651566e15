"""Which kernels a device has."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch


def kernels(name: str, device: torch.device) -> ModuleType | None:
    """The module of Triton kernels `<name>_triton` for a CUDA device; None for a CPU, or where there is no Triton."""
    return _load(f"phicli.quantization.{name}_triton") if device.type == "cuda" else None


@cache
def _load(module: str) -> ModuleType | None:
    try:
        return import_module(module)
    except ImportError:
        return None
