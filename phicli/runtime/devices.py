"""Which execution provider a model runs on, and the libraries that the CUDA one needs."""

import contextlib
import ctypes
import io
import sys
from typing import Any

from phicli.errors import Missing

COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute: major, minor


def gpu_count() -> int:
    """NVIDIA GPUs that the driver sees. Asks the driver itself, since importing torch for it takes seconds."""
    return _ask_driver("cuDeviceGetCount") or 0


def compute_capability() -> tuple[int, int] | None:
    """Of the first GPU, such as (9, 0); None where there is none."""
    major, minor = (_ask_driver("cuDeviceGetAttribute", which, 0) for which in COMPUTE_CAPABILITY)
    return None if major is None or minor is None else (major, minor)


def _ask_driver(function: str, *arguments: int) -> int | None:
    """The number that a function of the CUDA driver gives; None where there is no GPU or no driver."""
    found = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuInit(0) != 0 or getattr(driver, function)(ctypes.byref(found), *arguments) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return found.value


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
