"""Which execution provider a model runs on, and the libraries that the CUDA one needs."""

import contextlib
import io
from typing import Any

from phicli.errors import Missing
from phicli.hardware.driver import gpu_count


def built_for(config: dict[str, Any]) -> str:
    """The provider that a genai_config.json names for its decoder: "cpu", "cuda", "dml", "webgpu", …"""
    options = config["model"]["decoder"].get("session_options", {}).get("provider_options", [])
    names = [name.lower() for entry in options for name in entry]
    return names[0] if names else "cpu"


def select_provider(og_config: Any, built: str, device: str) -> str:
    """Set the provider that the session will use, and load what it needs.

    Args:
        og_config: onnxruntime_genai.Config of the model.
        built: what the model was built for. device: "auto" (what it was built for), "cuda" or "cpu".

    Raises:
        Missing: CUDA wanted on a machine that has none.
    """
    provider = built if device == "auto" else device
    if provider == "cuda":
        if not gpu_count():
            raise Missing("no NVIDIA GPU (or no driver) on this machine", where="--device cuda" if device == "cuda"
                          else "a model built for CUDA", hint="phicli optimize --device cpu, then chat --device cpu")
        _load_cuda_libraries()
    if provider != built:
        og_config.clear_providers()
        if provider != "cpu":
            og_config.append_provider(provider)
    return provider


def _load_cuda_libraries() -> None:
    """Put cuBLAS, cuDNN and the like, which come as wheels of their own, where onnxruntime finds them.

    onnxruntime prints what it could not load; if that mattered, making the session fails with a message.
    """
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
