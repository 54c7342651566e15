"""Which execution provider a model runs on, and the libraries that the CUDA one needs."""

import contextlib
import io
from typing import Any

from phicli.errors import Missing
from phicli.hardware.driver import gpu_count


def built_for(settings: dict[str, Any]) -> str:
    """The provider that a model's settings (see `read_config`) name for its decoder: "cpu", "cuda", "dml", …"""
    options = settings["model"]["decoder"]["session_options"]["provider_options"]
    return next((name for entry in options for name in entry), "cpu")


def select_provider(settings: dict[str, Any], device: str) -> str:
    """Set the provider that the session will use, and load what it needs.

    Args:
        settings: of the model, see `read_config`. device: "auto" (what it was built for), "cuda" or "cpu".

    Raises:
        Missing: CUDA wanted on a machine that has none.
    """
    built = built_for(settings)
    provider = built if device == "auto" else device
    if provider == "cuda":
        if not gpu_count():
            raise Missing("no NVIDIA GPU (or no driver) on this machine", where="--device cuda" if device == "cuda"
                          else "a model built for CUDA", hint="phicli optimize --device cpu, then chat --device cpu")
        _load_cuda_libraries()
    if provider != built:
        options = settings["model"]["decoder"]["session_options"]
        options["provider_options"] = [] if provider == "cpu" else [{provider: {}}]
    return provider


def _load_cuda_libraries() -> None:
    """Put cuBLAS, cuDNN and the like, which come as wheels of their own, where onnxruntime finds them.

    onnxruntime prints what it could not load; if that mattered, making the session fails with a message.
    """
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
