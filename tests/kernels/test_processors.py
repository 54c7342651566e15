"""The products of every processor that this one can be, and of ARM's under emulation, beside those in plain C."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from phicli.kernels import build

HERE = Path(__file__).parent
CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
FLAGS = ["-std=gnu11", "-O1", "-fno-trapping-math", f"-I{build.HERE}"]
SERVER = {"avx512_vnni", "avx512vl", "avx512bw", "avx512dq", "avx512_vbmi2", "vaes", "gfni"}  # Ice Lake and later
# flags of a compiler, and those of the processor that runs it
X86 = {"avx2": (["-march=haswell"], build.AVX2 | {"bmi2"}),
       "avx2 with vnni": (["-march=haswell", "-mavxvnni"], build.AVX2 | {"avx_vnni"}),
       "avx512": (["-march=icelake-server"], SERVER),
       "amx": (["-march=icelake-server", "-mamx-int8", "-mamx-tile"], SERVER | {"amx_int8"})}
ARM = {"dotprod": ["-march=armv8.2-a+dotprod"], "i8mm": ["-march=armv8.2-a+dotprod+i8mm"]}
needs_emulator = pytest.mark.skipif(not (shutil.which(CROSS) and shutil.which(EMULATOR)),
                                    reason=f"no {CROSS} or no {EMULATOR}")


def output(folder: Path, program: str, compiler: str, *flags: str, emulator: tuple[str, ...] = ()) -> bytes:
    built = folder / "program"
    subprocess.run([compiler, *FLAGS, *flags, HERE / program, "-o", built, "-lm"], check=True)
    return subprocess.run([*emulator, built], check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, bytes]:
    """What loops in plain C give."""
    compiler = shutil.which("gcc")
    if not compiler:
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("plain")
    return {program: output(folder, program, compiler, "-DPLAIN") for program in ("products.c", "adapters.c")}


def near(found: bytes, expected: bytes) -> None:
    """Adapters' sums, whose order is each processor's own."""
    one, other = np.frombuffer(found, np.float32), np.frombuffer(expected, np.float32)
    assert one.shape == other.shape and np.isfinite(other).all()
    assert np.abs(one - other).max() < 1e-6 * np.abs(other).max()


@pytest.mark.parametrize("processor", X86)
def test_products_are_the_same_to_the_last_bit(processor, plain, tmp_path):
    flags, needed = X86[processor]
    if not needed <= build._cpu_flags():
        pytest.skip(f"a processor without {', '.join(sorted(needed - build._cpu_flags()))}")
    assert output(tmp_path, "products.c", "gcc", *flags) == plain["products.c"]
    near(output(tmp_path, "adapters.c", "gcc", *flags), plain["adapters.c"])


@needs_emulator
@pytest.mark.parametrize("processor", ARM)
def test_arms_products_are_the_same_to_the_last_bit(processor, plain, tmp_path):
    flags = ("-static", *ARM[processor])
    assert output(tmp_path, "products.c", CROSS, *flags, emulator=(EMULATOR, "-cpu", "max")) == plain["products.c"]


@needs_emulator
def test_arms_adapters_and_library(plain, tmp_path):
    near(output(tmp_path, "adapters.c", CROSS, "-static", emulator=(EMULATOR,)), plain["adapters.c"])
    matmul = ["-march=armv8.2-a+dotprod", "-DMATMUL_NBITS", "nbits_op.c", "lora_matmul_op.c"]
    for more in ([], matmul):
        subprocess.run([CROSS, *FLAGS, "-Werror", "-fsyntax-only", *more, *build.SOURCES], check=True, cwd=build.HERE)
