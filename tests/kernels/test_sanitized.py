"""The ops in C under AddressSanitizer and UndefinedBehaviorSanitizer, with graphs that strangers could send."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from phicli.kernels import build

HERE = Path(__file__).parent
GRAPHS = int(os.environ.get("HOSTILE", "400"))
FLAGS = ["-std=gnu11", "-O1", "-g", "-shared", "-fPIC", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
VECTORS = ["-march=native", "-DMATMUL_NBITS"]
AVX2 = ["-march=x86-64-v3", "-DMATMUL_NBITS"]  # whose loads a sanitizer sees: masked ones of AVX-512 it does not


def sanitizer() -> str:
    """gcc's AddressSanitizer, which has to be in a process from its start, behind it what it asks for exceptions."""
    if not shutil.which("gcc"):
        return ""
    found = [subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
             for name in ("libasan.so", "libstdc++.so.6")]
    return ":".join(found) if all(map(os.path.isabs, found)) else ""


needs_sanitizer = pytest.mark.skipif(not sanitizer(), reason="no gcc with AddressSanitizer")


def compiled(folder: Path, own: list[str], planted: tuple[str, str, str] | None = None) -> Path:
    """The library with sanitizers; planted: a file, and what takes a text's place in it."""
    sources = shutil.copytree(build.HERE, folder / "native", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    if planted:
        name, text, other = planted
        before = (sources / name).read_text()
        assert before.count(text) == 1
        (sources / name).write_text(before.replace(text, other))
    (sources / "cubin.c").write_text(build.EMBEDDED % ("0", 0))
    more = ["nbits_op.c", "lora_matmul_op.c"] if own else []
    files = [sources / name for name in (*build.SOURCES, "cubin.c", *more)]
    subprocess.run(["gcc", *FLAGS, *own, *files, "-o", folder / "libops.so", "-ldl", "-lm"], check=True)
    return folder / "libops.so"


def run(library: Path, matmul: bool, graphs: int = GRAPHS) -> subprocess.CompletedProcess:
    env = {**os.environ, "LD_PRELOAD": sanitizer(), "ORT_DISABLE_TELEMETRY": "1",
           "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [sys.executable, HERE / "hostile.py", library, str(graphs), "0", str(int(matmul))]
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")


@needs_sanitizer
@pytest.mark.timeout(900)
@pytest.mark.parametrize("own", [pytest.param(own, id=name, marks=pytest.mark.skipif(
    bool(own and build.matmul_missing()), reason=f"{build.matmul_missing()}"))
    for name, own in (("vectors", VECTORS), ("avx2", AVX2), ("loops", []))])
def test_no_graph_makes_the_ops_touch_what_is_not_theirs(own, tmp_path):
    done = run(compiled(tmp_path, own), bool(own))
    assert not done.returncode, done.stderr[-6000:]
    found = json.loads(done.stdout)
    assert sum(found.values()) == GRAPHS and found["right"] > GRAPHS / 20 and found["refused"] > GRAPHS / 2


@needs_sanitizer
@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(build.matmul_missing()), reason=f"{build.matmul_missing()}")
@pytest.mark.parametrize("planted", [
    ("lora.h", "if (matrix[i].count != matrix_size(op, adapters, width))", "if (0)"),
    ("nbits_op.c", "scales.count != sizes->outputs * blocks", "0"),
    ("attention_op.c", "in[0].dims[2] != (packed ? q + 2 * kv : q)", "0"),
])
def test_a_check_that_is_taken_out_is_missed(planted, tmp_path):
    done = run(compiled(tmp_path, AVX2, planted), matmul=True, graphs=400)
    report = "READ of size" in done.stderr or "nested bug" in done.stderr  # two threads may meet the fault at once
    assert done.returncode and "AddressSanitizer" in done.stderr and report, done.stderr[-2000:]
