"""What a model can be built for: devices, and the execution providers that they have."""

import difflib
from dataclasses import dataclass

from phicli.errors import Missing, UsageError
from phicli.hardware.devices import EXECUTION_PROVIDERS
from phicli.hardware.driver import gpu_count
from phicli.progress import SILENT, Progress

HARDWARE = {"cpu": ("cpu",), "cuda": ("gpu",), "dml": ("gpu",), "webgpu": ("gpu",), "tensorrt": ("gpu",),
            "openvino": ("cpu", "gpu"), "qnn": ("npu",), "vitisai": ("npu",), "coreml": ("gpu", "npu")}
USUAL = {"cpu": "cpu", "gpu": "cuda"}  # provider of a kind of hardware, where none is named
# What cannot be built, or not be run by onnxruntime-genai: why, with the package and the machine that it takes.
REFUSED = {
    "qnn": "QNN takes static shapes and Qualcomm's own integers: onnxruntime-qnn and a Snapdragon's NPU, and Olive's "
           "passes StaticLLM, SplitModel and EPContextBinaryGenerator",
    "vitisai": "Vitis AI takes AMD's own quantization: amd-quark and the Ryzen AI software on a machine with its NPU, "
               "and Olive's passes QuarkQuantization and VitisGenerateModelLLM",
    "coreml": "onnxruntime-genai 0.18 has no CoreML: on a Mac its package runs --device cpu, and onnxruntime-ep-webgpu "
              "what --device webgpu builds",
    "openvino-npu": "OpenVINO's NPU takes static shapes and weights by channel: optimum-intel and openvino on an Intel "
                    "Core Ultra, and Olive's passes OpenVINOOptimumConversion, OpenVINOIoUpdate and "
                    "OpenVINOEncapsulation",
    "npu": "an NPU needs static shapes and its maker's quantization: --provider qnn (Qualcomm), vitisai (AMD) or "
           "openvino (Intel) says with which packages",
}


@dataclass(frozen=True)
class Target:
    """name: a key of `EXECUTION_PROVIDERS`. hardware: "cpu" or "gpu"."""

    name: str
    hardware: str


def choose_target(device: str, provider: str | None = None, progress: Progress = SILENT) -> Target:
    """What `--device` and `--provider` mean together.

    Building needs none of the hardware; that there is no GPU here is only said.

    Args:
        device: "auto" (cuda where there is an NVIDIA GPU, else cpu), "cpu", "gpu", "npu", or what `provider` may be.
        provider: an execution provider, short ("openvino") or as onnxruntime and Olive call it.

    Raises:
        Missing: what cannot be built, with what it takes. UsageError: anything unknown, or not of one another.
    """
    named = _provider(provider, "--provider") if provider else None
    kind = device if device in ("cpu", "gpu", "npu") else None
    if device == "auto":
        named = named or ("cuda" if gpu_count() else "cpu")
    elif kind is None:
        of_device = _provider(device, "--device")
        if named and named != of_device:
            raise UsageError(f"--device {device} and --provider {provider} are not the same")
        named = of_device
    if kind == "npu" and named is None:
        raise _refused("npu", "--device npu")
    name = named or USUAL[kind or "cpu"]
    if kind and kind not in HARDWARE[name] and (name, kind) != ("openvino", "npu"):
        raise UsageError(f"--provider {provider} runs on {' and '.join(HARDWARE[name])}, not on --device {device}")
    if name in REFUSED or kind == "npu":
        raise _refused(name if name in REFUSED else "openvino-npu", "--provider" if provider else "--device")
    if name == "cuda" and not gpu_count():
        progress.warn("no NVIDIA GPU on this machine: the model can be built here, but not run")
    return Target(name, kind or HARDWARE[name][0])


def _provider(given: str, where: str) -> str:
    """The short name of a provider, given by either. Raises UsageError: unknown."""
    known = {full.lower(): name for name, full in EXECUTION_PROVIDERS.items()}
    short = known.get(given.lower(), given.lower().removesuffix("executionprovider"))
    if short in HARDWARE:
        return short
    names = [*(["auto", "cpu", "gpu", "npu"] if where == "--device" else ["cpu"]), *list(HARDWARE)[1:]]
    near = difflib.get_close_matches(given.lower(), names, 1)
    raise UsageError(f"'{given}' is not one of {', '.join(names)}", where=where,
                     hint=f"did you mean '{near[0]}'?" if near else None)


def _refused(name: str, where: str) -> Missing:
    return Missing(REFUSED[name], where=where, hint="phicli optimize --device cpu")
