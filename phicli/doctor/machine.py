"""A machine in a few words, for bug reports: nothing that tells whose it is."""

import os
import platform
from importlib import metadata

from phicli.doctor.gpu import cuda_of_driver, devices, driver_version
from phicli.doctor.software import CORE
from phicli.hardware.devices import available_memory, total_memory, usable_cores
from phicli.units import size
from phicli.version import __version__

MORE = ("azure-ai-ml", "huggingface-hub", "numpy", "onnx", "safetensors", "tokenizers", "typer")


def describe() -> dict[str, str]:
    """What -> in words: versions, system, processor, memory, GPU and driver."""
    names, failure = devices()
    found = {
        "phicli": __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, {'-'.join(platform.libc_ver())}",
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        "memory": f"{size(available_memory('cpu'))} free of {size(total_memory())}",
        "GPU": ", ".join(names) or f"none ({failure})",
        "driver": f"{driver_version() or 'none'}, CUDA {cuda_of_driver() or 'none'}",
    }
    for name in (*CORE, *MORE):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
