"""The kernels in CUDA C compile for each kind of GPU, without one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from phicli.kernels import build

NVRTC = Path(sys.prefix) / "nvrtc"
pytestmark = pytest.mark.skipif(not NVRTC.is_dir(), reason="NVRTC is not where make test puts it")


@pytest.fixture(autouse=True)
def nvrtc(monkeypatch):
    monkeypatch.syspath_prepend(NVRTC)
    build._nvrtc.cache_clear()
    yield
    build._nvrtc.cache_clear()


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (12, 0)], ids=str)
def test_kernels_compile(capability):
    """As many as gpu.c has places for."""
    cubin = build.compile_kernels(True, capability)
    counts = re.findall(r"(?:LORA|NBITS|ATTENTION)_KERNELS = (\d+)", (build.HERE / "gpu.h").read_text())
    assert len({*re.findall(rb"\.text\.(\w+)\0", cubin)}) == sum(map(int, counts))


def test_products_load_weights_before_they_wait_for_the_kernel_before(tmp_path):
    """In machine code: the compiler has moved the loads behind the waiting once, which nothing else showed."""
    (tmp_path / "cubin").write_bytes(build.compile_kernels(True, (9, 0)))
    done = subprocess.run([NVRTC / "nvidia" / "cu13" / "bin" / "nvdisasm", tmp_path / "cubin"], capture_output=True,
                          text=True, check=True)
    section = re.compile(r"^//-+ \.text\.((?:nbits|lora)_\w+) +-+\n(.*?)(?=^//-|\Z)", re.MULTILINE | re.DOTALL)
    kernels = dict(section.findall(done.stdout))
    loads = {f"nbits_{bits}_{rows}": bits // 2 for bits in (4, 8) for rows in (1, 2, 4, 8)}
    for rows in ("one", "each"):
        loads |= {f"lora_down_{rows}": 4, f"lora_up_{rows}": 1, f"lora_gated_up_{rows}": 2}
    for name, count in loads.items():
        before, waiting, _ = kernels[name].partition("ACQBULK")
        assert waiting and len(re.findall(r"LDG\.\S*\.128\b", before)) == count, name
    assert all("ACQBULK" in code for name, code in kernels.items() if name.startswith("lora_"))
