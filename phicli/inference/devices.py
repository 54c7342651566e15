"""Which execution provider a model runs on, and the libraries that it needs."""

import contextlib
import io
import json
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from phicli.config.commands import ChatConfig
from phicli.config.setting import checked
from phicli.config.shared import PROVIDERS
from phicli.errors import Missing
from phicli.hardware.devices import EXECUTION_PROVIDERS, usable_cores
from phicli.hardware.driver import gpu_count

# Providers that are libraries of their own: the module that knows where it lies, and what installs it.
PLUGINS = {"openvino": ("onnxruntime_ep_openvino", "'phicli[openvino]'"),
           "webgpu": ("onnxruntime_ep_webgpu", "onnxruntime-ep-webgpu"),
           "tensorrt": ("onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx")}

RUN_HERE = "phicli chat --device cpu"
NO_DEVICE = ("device", "not supported in this build")  # in what genai says; the second where a plugin offers none


def checked_device(device: str) -> str:
    """A device that a model can be opened on, or a provider. Raises UsageError: neither."""
    return device if device in PROVIDERS else str(checked(ChatConfig, "device", device))


def built_for(settings: dict[str, Any]) -> str:
    """The provider that a model's settings (see `read_config`) name for its decoder: "cpu", "cuda", "dml", …"""
    options = settings["model"]["decoder"]["session_options"]["provider_options"]
    return next((name for entry in options for name in entry), "cpu")


def select_provider(settings: dict[str, Any], device: str) -> str:
    """Set the provider that the session will use, and load what it needs.

    Args:
        settings: of the model, see `read_config`. device: "auto" (what it was built for), or a provider.

    Raises:
        Missing: CUDA wanted on a machine that has none; a provider whose package is not installed.
    """
    built = built_for(settings)
    provider = built if device == "auto" else device
    if provider == "cuda":
        if not gpu_count():
            raise Missing("no NVIDIA GPU (or no driver) on this machine", where="--device cuda" if device == "cuda"
                          else "a model built for CUDA", hint="phicli optimize --device cpu")
        _load_cuda_libraries()
    elif provider != "cpu":
        _load_plugin(provider)
    options = settings["model"]["decoder"]["session_options"]
    if provider != built:
        options["provider_options"] = [] if provider == "cpu" else [{provider: {}}]
    if provider == "openvino":
        given = options["provider_options"][0][provider]
        hardware = given.setdefault("device_type", "CPU")
        if hardware == "CPU":
            chosen = json.loads(given.get("load_config", "{}")).get(hardware, {})
            given["load_config"] = json.dumps({hardware: chosen | {"INFERENCE_NUM_THREADS": str(usable_cores())}})
    return provider


def lacking(provider: str) -> str | None:
    """On which other machine a model for a provider runs, in words; None where nothing that is looked at is lacking.

    What a plugin finds to run on, only a session tells.
    """
    if provider in ("cuda", "tensorrt") and not gpu_count():
        return "on a machine with an NVIDIA GPU"
    if provider in ("cpu", "cuda"):
        return None
    import onnxruntime

    if EXECUTION_PROVIDERS[provider] in onnxruntime.get_available_providers():
        return None
    if provider not in PLUGINS:
        return "on Windows, with onnxruntime-genai-directml"
    module, package = PLUGINS[provider]
    return None if find_spec(module) else f"after pip install {package}"


@cache
def _load_plugin(provider: str) -> None:
    """Make a provider's library known to onnxruntime, once in a process, unless this onnxruntime is built with it.

    Raises:
        Missing: its package is not installed, or does not load here.
    """
    import onnxruntime
    import onnxruntime_genai as og

    if EXECUTION_PROVIDERS[provider] in onnxruntime.get_available_providers():
        return
    if provider not in PLUGINS:
        raise Missing("DirectML comes with onnxruntime-genai-directml, on Windows, in place of onnxruntime-genai-cuda",
                      where=f"a model for {provider}", hint=RUN_HERE)
    module, package = PLUGINS[provider]
    try:
        library = import_module(module).get_library_path()
        og.register_execution_provider_library(provider, library)
    except ImportError:
        raise Missing(f"the package of {provider} is not installed", where=f"a model for {provider}",
                      hint=f"pip install {package}", also=[RUN_HERE]) from None
    except (OSError, RuntimeError) as e:
        raise Missing(f"{module} does not load: {' '.join(str(e).split())[:300]}", where=f"a model for {provider}",
                      hint=f"pip install --upgrade {package}", also=[RUN_HERE]) from e


@contextlib.contextmanager
def within_devices(provider: str) -> Iterator[None]:
    """Turn what genai raises where a provider of `PLUGINS` finds nothing to run on into Missing."""
    try:
        yield
    except RuntimeError as e:
        if provider not in PLUGINS or not any(words in str(e) for words in NO_DEVICE):
            raise
        raise Missing(f"{provider} finds no device to run on: {' '.join(str(e).split())[:300]}",
                      where=f"a model for {provider}", hint=RUN_HERE) from e


def _load_cuda_libraries() -> None:
    """Put cuBLAS, cuDNN and the like, which come as wheels of their own, where onnxruntime finds them.

    onnxruntime prints what it could not load; if that mattered, making the session fails with a message.
    """
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
