"""Kernels in CUDA C, compiled to run on a CPU (emulator.h), alone or behind their op in onnxruntime."""

import shutil
import subprocess
from pathlib import Path

import pytest

from phicli.kernels import build

HERE = Path(__file__).parent
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiled(name: str, output: Path, *flags: str, planted: tuple[str, str, str] | None = None) -> Path:
    """The emulation of NAME.cu; planted: a file of kernels, a text of it, and what takes its place."""
    sources = {file.name: file.read_text() for file in build.HERE.glob("*.cu")}
    if planted:
        file, *texts = planted
        assert sources[file].count(texts[0]) == 1
        sources[file] = sources[file].replace(*texts)
    for file, text in sources.items():
        (output.parent / file).write_text(text)
    command = ["g++", "-std=gnu++17", "-O1", *flags, "-I", output.parent, HERE / f"{name}_emulated.cpp", "-o", output]
    subprocess.run(command, check=True)
    return output


def check_alone(name: str, folder: Path, *flags: str) -> None:
    """That it gives float64's sums under sanitizers, in 12 cases."""
    program = compiled(name, folder / "emulated", *SANITIZED, *flags)
    done = subprocess.run([program, "1", "12"], capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 12


def check_found(name: str, folder: Path, planted: tuple[str, str, str], *flags: str) -> None:
    """That what is planted gives a wrong sum."""
    program = compiled(name, folder / "emulated", *flags, planted=planted)
    assert subprocess.run([program, "1", "12"], capture_output=True).returncode == 1


def with_driver(name: str, op: str, folder: Path, *flags: str) -> tuple[Path, Path]:
    """The library with the op of a file in C for a CPU, though its kernels are CUDA's, and the driver of those."""
    driver = compiled(name, folder / "libcuda.so.1", "-DDRIVER", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    sources = shutil.copytree(build.HERE, folder / "native", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = (sources / op).read_text()
    assert text.count('"CUDAExecutionProvider"') == 1
    (sources / op).write_text(text.replace('"CUDAExecutionProvider"', "NULL"))
    (sources / "cubin.c").write_text(build.EMBEDDED % ("0", 1))
    library = folder / "libops.so"
    files = dict.fromkeys((*build.SOURCES, op, "cubin.c"))
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", *flags,
                    *(sources / file for file in files), "-o", library, "-ldl", "-lm"], check=True)
    return library, driver
