"""The kernels in CUDA C compile for each kind of GPU, without one."""

import re
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
