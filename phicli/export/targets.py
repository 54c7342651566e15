"""What a model can be built for."""

import difflib

from phicli.errors import Missing, UsageError
from phicli.hardware.devices import EXECUTION_PROVIDERS
from phicli.hardware.driver import gpu_count
from phicli.progress import SILENT, Progress

# Neural processing units: genai's builder makes no graph for them; what Olive has instead.
NPUS = {
    "npu": "passes for Qualcomm (qnn), Intel (openvino) and AMD (vitisai)",
    "qnn": "the passes StaticLLM, then QNNPreprocess and QNNContextBinaryGenerator, with onnxruntime-qnn",
    "openvino": "the passes OpenVINOOptimumConversion, OpenVINOIoUpdate and OpenVINOEncapsulation, with openvino",
    "vitisai": "the pass VitisGenerateModelLLM, with AMD's Ryzen AI software",
}


def choose_target(wanted: str, progress: Progress = SILENT) -> str:
    """The name of a target: "auto" is cuda where there is an NVIDIA GPU, else cpu.

    Building needs none of the hardware; that there is no GPU here is only said.

    Raises:
        Missing: an NPU. UsageError: anything unknown.
    """
    if wanted == "auto":
        return "cuda" if gpu_count() else "cpu"
    if wanted == "cuda" and not gpu_count():
        progress.warn("no NVIDIA GPU on this machine: the model can be built here, but not run")
    if wanted in EXECUTION_PROVIDERS:
        return wanted
    if wanted in NPUS:
        raise Missing(f"no model for '{wanted}' can be built here: an NPU needs static shapes, and its maker's "
                      "quantization and onnxruntime; adapters could not be swapped", where="--device",
                      hint=f"Olive itself has {NPUS[wanted]}: olive run --config FILE")
    known = ["auto", *EXECUTION_PROVIDERS]
    near = difflib.get_close_matches(wanted, known, 1)
    raise UsageError(f"'{wanted}' is not one of {', '.join(known)}", where="--device",
                     hint=f"did you mean '{near[0]}'?" if near else None)
