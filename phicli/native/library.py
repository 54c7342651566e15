"""The library of the ops LoraDown and LoraUp, built on the machine that runs it and kept in the user's cache folder.

C by the machine's compiler, CUDA by NVRTC (of torch's and onnxruntime's CUDA wheels) for the GPU that is there.
"""

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phicli.cache import user_cache
from phicli.errors import Missing
from phicli.onnx.slots import LAYOUT_KEY, read_graph
from phicli.runtime.devices import compute_capability

HERE = Path(__file__).parent
AMPERE = (8, 0)
WHERE = "kernels of LoRA"
HINT = "phicli optimize --adapter-layout resident needs none of it"
EMBEDDED = """#include <stddef.h>
const unsigned char lora_cubin[] __attribute__((aligned(64))) = {%s};
const size_t lora_cubin_size = %d;
"""


def missing(device: str) -> str | None:
    """What this machine lacks to build the library for "cuda" or "cpu"; None where nothing."""
    if sys.platform == "win32":
        return "the kernels are built on Linux only"
    if not _compiler():
        return "no C compiler (cc, gcc or clang)"
    if device == "cuda":
        capability = compute_capability()
        if not capability:
            return "no NVIDIA GPU"
        if capability < AMPERE:
            return "the kernels' products of halves need a GPU of compute capability 8.0 or more"
        if not _nvrtc():
            return "no NVRTC, which comes with torch's CUDA wheels (nvidia-cuda-nvrtc)"
    return None


def ops_library(device: str) -> Path:
    """The library for the CPU and, with "cuda", for this machine's GPU; built at the first call.

    Raises:
        Missing: no compiler, or it failed.
    """
    if lack := missing(device):
        raise Missing(lack, where=WHERE, hint=HINT)
    capability = compute_capability() if device == "cuda" else None
    digest = hashlib.sha256(repr((capability, os.uname().machine)).encode())
    for source in sorted(p for p in HERE.iterdir() if p.suffix in (".c", ".h", ".cu")):
        digest.update(source.read_bytes())
    path = user_cache() / f"lora-{digest.hexdigest()[:16]}" / "liblora.so"
    if path.is_file():
        return path
    cubin = _compile_kernels((HERE / "lora.cu").read_bytes(), capability) if capability else b""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{os.getpid()}.so")
        _compile_library(cubin, beside)
        return beside.replace(path)
    except OSError:  # no cache folder that can be written
        return _compile_library(cubin, Path(tempfile.mkdtemp(prefix="phicli-")) / path.name)


@contextlib.contextmanager
def ops_of(folder: Path, og_config: Any, provider: str) -> Iterator[None]:
    """While a model is made of an onnxruntime_genai.Config: give it the library, if the graph with adapters needs it.

    genai takes libraries only from a model's folder or the working directory, which is another one meanwhile. Code
    that lies in a model's folder is never loaded. Raises as `ops_library`.
    """
    if read_graph(folder)[0].get(LAYOUT_KEY) != "fused":
        yield
        return
    path = ops_library(provider)
    og_config.overlay(json.dumps({"model": {"decoder": {"session_options": {"custom_ops_library": str(path)}}}}))
    with contextlib.chdir(path.parent):
        yield


def _compile_library(cubin: bytes, output: Path) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        embedded = Path(scratch) / "cubin.c"
        embedded.write_text(EMBEDDED % (",".join(map(str, cubin or b"\0")), len(cubin)))
        command: list[str | Path] = [_compiler() or "cc", "-std=c11", "-O3", "-shared", "-fPIC", "-fvisibility=hidden",
                   HERE / "lora_op.c", embedded, "-o", output, "-ldl", "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"the C compiler failed: {done.stderr.strip()[:500]}", where=WHERE, hint=HINT)
    return output


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)


@functools.cache
def _nvrtc() -> ctypes.CDLL | None:
    """NVRTC, from the loader's path or from NVIDIA's wheels."""
    wheels = [str(p) for entry in sys.path for p in sorted(Path(entry or ".").glob("nvidia/*/lib/libnvrtc.so.*"))]
    for name in ["libnvrtc.so.13", "libnvrtc.so.12", *wheels]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _compile_kernels(source: bytes, capability: tuple[int, int]) -> bytes:
    """Machine code for one kind of GPU (https://docs.nvidia.com/cuda/nvrtc). Raises Missing: NVRTC failed."""
    nvrtc, program, size = _nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc is not None  # `missing` has looked
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode()]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"lora.cu", 0, None, None)
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise Missing(f"NVRTC failed: {log.value.decode(errors='replace')[:500]}", where=WHERE, hint=HINT)
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
