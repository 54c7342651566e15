"""Looking at native libraries from a process of their own, since a broken one may end the process that loads it.

`python -m phicli.doctor.probes NAME` prints one JSON document; what the libraries print goes to stderr.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from phicli.hardware.devices import EXECUTION_PROVIDERS

CUDA, CPU = EXECUTION_PROVIDERS["cuda"], EXECUTION_PROVIDERS["cpu"]
SECONDS = 60.0  # that a probe may take
LIBRARY = re.compile(r"(?:lib)?(cudart|cublasLt|cublas|cudnn|cufft|curand|nvrtc|cuda|nvcuda)[\w-]*\.(?:so|dll)[.\d]*")
COLOUR = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True)
class Outcome:
    """What a probe gave: its document, or why there is none. said: what the libraries printed."""

    document: dict[str, Any] | None
    reason: str
    said: str


class Probes:
    """All the probes at once, two at a time; `get` waits for one."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2)
        self._running: dict[str, Future[Outcome]] = {name: self._pool.submit(run_probe, name) for name in PROBES}

    def get(self, name: str) -> Outcome:
        return self._running[name].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def run_probe(name: str, environment: dict[str, str] | None = None) -> Outcome:
    """Run one probe in a process; a crash or no answer in time is an outcome too."""
    try:
        done = subprocess.run([sys.executable, "-m", __name__, name], capture_output=True, text=True, errors="replace",
                              timeout=SECONDS, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Outcome(None, f"no answer within {SECONDS:.0f} s", "")
    said = COLOUR.sub("", done.stderr)
    if done.returncode == 0:
        return Outcome(json.loads(done.stdout), "", said)
    if done.returncode < 0:
        return Outcome(None, f"the process was ended by signal {-done.returncode}", said)
    return Outcome(None, (said.strip().splitlines() or ["no message"])[-1], said)


def one_node_model() -> bytes:
    """An ONNX model of one node, y = x x: a product, so that the CUDA provider needs cuBLAS for it."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "one", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def _session(provider: str) -> dict[str, Any]:
    """A session of onnxruntime on one provider: which it really uses, and which CUDA libraries it has loaded."""
    import numpy as np
    import onnxruntime
    from onnxruntime.capi import build_and_package_info as built

    if provider == CUDA:
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(one_node_model(), providers=[provider])
    x = np.array([[1, 2], [3, 4]], np.float32)
    result = session.run(None, {"x": x})[0]
    return {"version": onnxruntime.__version__, "built_for_cuda": getattr(built, "cuda_version", None),
            "available": onnxruntime.get_available_providers(), "used": session.get_providers(),
            "right": result.tolist() == (x @ x).tolist(), "libraries": _loaded()}


def _loaded() -> dict[str, str]:
    """CUDA libraries in this process: name -> file."""
    import psutil

    paths = {found.path for found in psutil.Process().memory_maps()}
    names = {path: LIBRARY.fullmatch(os.path.basename(path)) for path in sorted(paths)}  # noqa: PTH119
    return {match[1]: path for path, match in names.items() if match}


def _genai() -> dict[str, Any]:
    import onnxruntime_genai

    return {"version": onnxruntime_genai.__version__, "cuda": onnxruntime_genai.is_cuda_available()}


def _torch() -> dict[str, Any]:
    """torch, and a product on each GPU that it sees."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        free, total = torch.cuda.mem_get_info(index)
        gpus.append({"name": torch.cuda.get_device_name(index), "right": float((ones @ ones)[0, 0]) == 64,
                     "capability": torch.cuda.get_device_capability(index), "free": free, "total": total})
    return {"version": torch.__version__, "built_for_cuda": torch.version.cuda, "gpus": gpus}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": _torch, CPU: lambda: _session(CPU), CUDA: lambda: _session(CUDA), "genai": _genai,
}


def _main(name: str) -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no part of the document
    try:
        document = PROBES[name]()
    except Exception as e:
        sys.exit(f"{type(e).__name__}: {' '.join(str(e).split())}")
    answer.write(json.dumps(document))
    answer.close()


if __name__ == "__main__":
    _main(sys.argv[1])
