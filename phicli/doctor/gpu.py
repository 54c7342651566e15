"""The GPU, its driver, and whether torch and onnxruntime can use it."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from phicli.doctor.check_result import CheckResult, Light, Subject
from phicli.doctor.probes import CUDA, Outcome
from phicli.errors import Missing
from phicli.kernels.build import WHERE, find_library, matmul_missing

DRIVER_FOR = {13: 580, 12: 525}  # CUDA's major version -> the oldest driver that runs it
TORCH_CUDA = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
NO_GPU = "--device cpu, or --model tiny; nvidia-smi shows what the driver sees"


def gpu(subject: Subject) -> CheckResult:
    """NVIDIA GPUs as the driver itself names them."""
    names, failure = devices()
    if names:
        return CheckResult(Light.GREEN, f"{', '.join(names)}; driver {driver_version() or 'of unknown version'}",
                       figures={"gpus": names, "driver": driver_version(), "cuda": cuda_of_driver()})
    light = Light.RED if subject.device == "cuda" else Light.YELLOW
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and driver_version():
        return CheckResult(light, f"CUDA_VISIBLE_DEVICES={hidden!r} hides it: {failure}", "unset CUDA_VISIBLE_DEVICES")
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return CheckResult(light, f"a GPU is there, but cannot be used: {failure}",
                       "install the driver (580 or newer), or start the container with --gpus all")
    if subject.device == "cpu":
        return CheckResult(Light.GREEN, "none, and none is asked for")
    return CheckResult(light, f"no NVIDIA GPU ({failure}): everything is computed on the CPU", NO_GPU)


def torch(subject: Subject) -> CheckResult:
    """torch's build, and a product on each GPU; finetune and quantize compute with it."""
    done = subject.probes.get("torch")
    if done.document is None:
        return CheckResult(Light.RED, f"does not run: {done.reason}", "pip install --force-reinstall torch")
    version, cuda, gpus = (done.document[k] for k in ("version", "built_for_cuda", "gpus"))
    build = f"built for CUDA {cuda}" if cuda else "built without CUDA"
    if not subject.wants_cuda:
        return CheckResult(Light.GREEN, f"{version}, {build}", figures=done.document)
    if not cuda:
        return CheckResult(Light.RED, f"{version}, {build}: quantize and finetune cannot use the GPU", TORCH_CUDA)
    if not gpus:
        return CheckResult(Light.RED, f"{version}, {build}, sees no GPU: {_last_line(done.said) or 'no reason given'}",
                       _driver_cure(cuda))
    if not all(found["right"] for found in gpus):
        return CheckResult(Light.RED, f"{version}: a product on the GPU came out wrong", TORCH_CUDA)
    return CheckResult(Light.GREEN, f"{version}, {build}, computes on {', '.join(g['name'] for g in gpus)}",
                   figures=done.document)


def onnxruntime_cuda(subject: Subject) -> CheckResult:
    """A session of one node that asks for CUDA: which provider and which libraries it really gets."""
    done = subject.probes.get(CUDA)
    document = done.document or {}
    libraries = document.get("libraries", {})
    if CUDA in document.get("used", ()) and document["right"]:
        places = sorted({str(Path(path).parent) for path in libraries.values()})
        return CheckResult(Light.GREEN, f"a session on CUDA runs; libraries from {', '.join(places)}", figures=document)
    reason = why_not_cuda(done)
    if not subject.wants_cuda:
        return CheckResult(Light.GREEN, "not needed here: sessions run on the CPU",
                           figures={**document, "reason": reason})
    return CheckResult(Light.RED, f"falls back to the CPU: {reason}", _cure(document, reason), document)


def own_kernels(subject: Subject) -> CheckResult:
    """The library of ops of our own, built here; without it onnxruntime's are taken, which cost more time."""
    cuda = subject.wants_cuda
    lack = None if cuda else matmul_missing()
    try:
        path, trouble = find_library("cuda" if cuda else "cpu", not cuda and not lack)
    except Missing as e:
        what = "adapters on a GPU take" if cuda else "decoding and adapters take"
        installed = "apt-get install gcc" + ("; pip install nvidia-cuda-nvrtc" if cuda else "")
        cure = installed if e.where == WHERE else e.hint
        return CheckResult(Light.YELLOW, f"cannot be built, so {what} more time: {e}", cure)
    if trouble:
        return CheckResult(Light.YELLOW, f"built again at each start, which takes seconds: {trouble}",
                       trouble.hint or "XDG_CACHE_HOME=FOLDER, one that is yours alone")
    beside = f"; onnxruntime's matmul is taken: {lack}" if lack else ""
    return CheckResult(Light.GREEN, f"built for this {'GPU' if cuda else 'CPU'}: {path}{beside}")


def why_not_cuda(done: Outcome) -> str:
    """The reason that onnxruntime printed, in one line."""
    if done.document is None:
        return done.reason
    if CUDA not in done.document["available"]:
        return "this onnxruntime is built without CUDA"
    if not done.document["right"]:
        return "a product on the GPU came out wrong"
    for pattern in (r"with error: (.+)", r"(CUDA (?:failure|error)[^\n]+)", r"(Failed to create CUDA[^.\n]+)"):
        if found := re.search(pattern, done.said):
            return found[1].strip()
    return _last_line(done.said) or "no reason given"


def _cure(document: dict, reason: str) -> str:
    if not document:
        return "pip install --force-reinstall --no-deps onnxruntime-gpu"
    if CUDA not in document["available"]:
        return "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    if "driver" in reason and "compat" in os.environ.get("LD_LIBRARY_PATH", ""):
        return "take the cuda/compat folder out of LD_LIBRARY_PATH"
    if re.search(r"\.(so|dll)\b", reason):
        return LIBRARIES
    return _driver_cure(document.get("built_for_cuda"))


def _driver_cure(cuda: str | None) -> str:
    major = int((cuda or "13").split(".")[0])
    return f"install an NVIDIA driver of version {DRIVER_FOR.get(major, 580)} or newer (CUDA {major})"


def devices() -> tuple[list[str], str]:
    """Names of the GPUs, and why there are none."""
    driver, failure = _driver()
    if driver is None:
        return [], failure
    count, names = ctypes.c_int(0), []
    driver.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        text, memory = ctypes.create_string_buffer(256), ctypes.c_size_t(0)
        device = ctypes.c_int(0)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(text, 256, device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        names.append(f"{text.value.decode(errors='replace')} ({memory.value / 1e9:.0f} GB)")
    return names, "" if names else "the driver sees none"


def cuda_of_driver() -> str | None:
    """The newest CUDA that the driver runs, such as "13.0"."""
    driver, _ = _driver()
    number = ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def driver_version() -> str | None:
    """Such as "580.95.05": of the kernel module, else as nvidia-smi has it."""
    try:
        found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", Path("/proc/driver/nvidia/version").read_text())
        return found[1] if found else None
    except OSError:
        pass
    tool = shutil.which("nvidia-smi")
    if not tool:
        return None
    try:
        done = subprocess.run([tool, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                              text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None


def _driver() -> tuple[ctypes.CDLL | None, str]:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        code = driver.cuInit(0)
    except (OSError, AttributeError):
        return None, f"no driver: {name} is not there"
    reasons = {100: "the driver sees none", 803: "driver and its library differ in version"}
    return (driver, "") if code == 0 else (None, reasons.get(code, f"the driver gives error {code}"))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()[:200]
