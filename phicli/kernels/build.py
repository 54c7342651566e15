"""The library of ops, built on the machine that runs it and kept there (see `keeping`).

C by the machine's compiler, CUDA by NVRTC (of torch's and onnxruntime's CUDA wheels) for the GPU that is there.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from phicli.errors import Missing
from phicli.hardware.driver import compute_capability
from phicli.kernels.keeping import kept_library

HERE = Path(__file__).parent
AMPERE = (8, 0)
AVX2 = {"avx2", "fma"}  # flags of a processor that nbits_op.c is for, and lora_avx2.h, which asks for F16C too,
DOTPROD = {"asimddp"}  # or of one of ARM's, for which adapters ask for nothing
SOURCES = ("ops.c", "gpu.c", "lora_op.c", "lora_cpu.c", "attention_op.c", "attention_cpu.c",
           "attention_gpu.c")
KERNELS = ("device.cu", "lora.cu", "attention_lines.cu", "attention_rows.cu", "attention.cu")
MATMUL_KERNELS = ("nbits_weights.cu", "nbits_multiply.cu", "nbits.cu")
WHERE = "ops of our own"
HINT = "phicli optimize --force"
_troubles: list[Missing] = []
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
            return "the kernels' fp16 matmul needs a GPU of compute capability 8.0 or more"
        if not _nvrtc():
            return "no NVRTC, which comes with torch's CUDA wheels (nvidia-cuda-nvrtc)"
    return None


def ops_library(device: str, matmul: bool = False) -> Path:
    """The library for the CPU and, with "cuda", for this machine's GPU; built at the first call.

    Args:
        matmul: with MatMulNBits, which takes the place of onnxruntime's on a CPU (see `matmul_missing`), on CUDA with
            MatMulNBitsRows.

    Raises:
        Missing: no compiler, or it failed, or no folder that is safe to load a library from.
    """
    return find_library(device, matmul)[0]


def find_library(device: str, matmul: bool = False) -> tuple[Path, Missing | None]:
    """As `ops_library`, and why the next process has to build it again; None where it has not to."""
    if lack := missing(device) or (matmul and device == "cpu" and matmul_missing()):
        raise Missing(lack, where=WHERE, hint=HINT)
    capability = compute_capability() if device == "cuda" else None
    made_for = (capability, matmul, os.uname().machine, sorted(_cpu_flags()))
    digest = hashlib.sha256(repr(made_for).encode())
    for source in sorted(p for p in HERE.iterdir() if p.suffix in (".c", ".h", ".cu")):
        digest.update(source.read_bytes())

    def build(scratch: Path) -> bytes:
        cubin = compile_kernels(matmul, capability) if capability else b""
        return _compile_library(cubin, matmul, scratch)

    try:
        path, trouble = kept_library(f"ops-{digest.hexdigest()[:16]}", build)
    except Missing as e:
        _troubles.append(e)
        raise Missing(e.message, where=e.where or WHERE, hint=e.hint or HINT) from None
    if trouble:
        _troubles.append(trouble)
    return path, trouble


def why_slow() -> Missing | None:
    """Why the library had to be built again, or could not be built, in this process; None where neither was so."""
    return _troubles[0] if _troubles else None


def matmul_missing() -> str | None:
    """What this machine lacks for our MatMulNBits."""
    if lack := missing("cpu"):
        return lack
    if not (matmul_measured() or _cpu_flags() >= DOTPROD):
        return "no x86 processor with AVX2 and FMA, or ARM processor with dot products"
    return None


def matmul_measured() -> bool:
    """Whether our MatMulNBits was found faster than onnxruntime's on processors like this (docs/performance.md)."""
    return _cpu_flags() >= AVX2


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words."""
    try:
        if sys.platform == "darwin" and platform.machine() == "x86_64":
            done = subprocess.run(["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"],
                                  capture_output=True, text=True)
            return frozenset(done.stdout.lower().split())
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()


def _compile_library(cubin: bytes, matmul: bool, scratch: Path) -> bytes:
    embedded, output = scratch / "cubin.c", scratch / "libops.so"
    embedded.write_text(EMBEDDED % (",".join(map(str, cubin or b"\0")), len(cubin)))
    flags = _cpu_flags()
    own: list[str | Path] = ["-march=native"] if flags >= AVX2 else ["-mcpu=native"] if flags >= DOTPROD else []
    if matmul and cubin:
        own += ["-DMATMUL_ROWS", HERE / "nbits_rows_op.c"]
    elif matmul:
        own += ["-DMATMUL_NBITS", HERE / "nbits_op.c", HERE / "lora_matmul_op.c"]
    own += ["-fopenmp-simd", "-fno-trapping-math"]  # else sums and largest numbers of a loop are no vectors
    command = [_compiler() or "cc", "-std=gnu11", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", *own,
               *(HERE / name for name in SOURCES), embedded, "-o", output, "-ldl", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                          env={**os.environ, "TMPDIR": str(scratch)})
    if done.returncode:
        raise Missing(f"the C compiler failed: {done.stderr.strip()[:500]}", where=WHERE, hint=HINT)
    return output.read_bytes()


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)


@functools.cache
def _nvrtc() -> ctypes.CDLL | None:
    """NVRTC, from the loader's path or from NVIDIA's wheels."""
    wheels = [p for entry in sys.path for p in sorted(Path(entry or ".").glob("nvidia/*/lib/libnvrtc.so.*"))]
    for name in [Path("libnvrtc.so.13"), Path("libnvrtc.so.12"), *wheels]:
        try:
            for part in name.parent.glob("libnvrtc-builtins.so.*") if name in wheels else ():
                ctypes.CDLL(str(part))  # which it asks the loader for by its name
            return ctypes.CDLL(str(name))
        except OSError:
            continue
    return None


def compile_kernels(matmul: bool, capability: tuple[int, int]) -> bytes:
    """Machine code for one kind of GPU (https://docs.nvidia.com/cuda/nvrtc). Raises Missing: NVRTC failed."""
    source = b"".join((HERE / name).read_bytes() for name in KERNELS + (MATMUL_KERNELS if matmul else ()))
    nvrtc, program, size = _nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc is not None  # `missing` has looked
    own = "a" if capability == (9, 0) else ""  # with what only this kind has: wgmma
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}{own}".encode()]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
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
