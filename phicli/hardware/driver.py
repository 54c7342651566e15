"""What NVIDIA's driver says, asked directly: importing torch for it takes seconds."""

import contextlib
import ctypes
import sys
from typing import Any

COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute: major, minor


def gpu_count() -> int:
    """NVIDIA GPUs that the driver sees."""
    return _ask_driver("cuDeviceGetCount") or 0


def expected_device(wanted: str) -> str:
    """"cuda" or "cpu": what `choose_device` will choose of "auto", "cuda" or "cpu", told without torch."""
    return ("cuda" if gpu_count() else "cpu") if wanted == "auto" else wanted


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


def open_gpu() -> bool:
    """Have the driver make its context on the first GPU, if there is one; it takes about a second.

    torch would make the same context, and keep Python's other threads from running meanwhile.
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    with contextlib.suppress(OSError, AttributeError):  # no driver
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return not (driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
                    or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    return False


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def gpu_memory_used() -> int | None:
    """Bytes in use on the first GPU, by all processes; None where there is none."""
    memory = _gpu_memory()
    return None if memory is None else int(memory.used)


def gpu_memory_free() -> int | None:
    """Bytes that nobody uses on the first GPU; None where there is none."""
    memory = _gpu_memory()
    return None if memory is None else int(memory.free)


def _gpu_memory() -> _Memory | None:
    nvml = _nvml()
    device, memory = ctypes.c_void_p(), _Memory()
    if nvml is None or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) or nvml.nvmlDeviceGetMemoryInfo(
            device, ctypes.byref(memory)):
        return None
    return memory


def gpu_name() -> str:
    """Of the first GPU; empty where there is none."""
    nvml = _nvml()
    device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    if nvml is None or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) or nvml.nvmlDeviceGetName(
            device, name, len(name)):
        return ""
    return name.value.decode(errors="replace")


def _nvml() -> Any:
    """NVIDIA's management library, which makes no context on the GPU; None where there is no driver."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        return None if nvml.nvmlInit_v2() else nvml
    except (OSError, AttributeError):
        return None
