"""The Triton kernels against the plain code, on a GPU, and elsewhere in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phicli.quantization.grid import GridShape, round_to_grid
from phicli.quantization.search import search_clip

SHAPES = [GridShape(4, 32), GridShape(4, 64, True), GridShape(4, 128), GridShape(4, 128, True)]


def check_search(shape: GridShape, device: str) -> None:
    from phicli.quantization.search_triton import clipped_grid, scaled_difference

    g = torch.Generator().manual_seed(0)
    weight = torch.randn(72, 256, generator=g) * 0.05
    weight[3] = weight[3].abs()
    weight[4] = 0
    x = torch.randn(500, 256, generator=g) @ torch.randn(256, 256, generator=g)
    gram, channel_scale = x.t() @ x / 500, torch.rand(256, generator=g) + 0.5
    ours = scaled_difference(weight.to(device), channel_scale.to(device), shape).float().cpu()
    plain = round_to_grid(weight * channel_scale, shape) / channel_scale - weight
    far = (ours - plain).abs() > plain.abs() / 2**7 + 1e-6  # more than bfloat16 does
    assert far.float().mean() < 1e-3  # a tie may fall the other way
    scale, zero = (t.cpu() for t in clipped_grid(weight.to(device), gram.to(device), shape, 10, 0.05))
    plain_scale, plain_zero = search_clip(weight, gram, shape)
    assert (scale == plain_scale).float().mean() > 0.98 and (zero == plain_zero).float().mean() > 0.98
    half, _ = clipped_grid(weight.half().to(device), gram.to(device), shape, 10, 0.05)
    # Steps of nearly the same error change places; seen: 0.944 and more.
    assert ((half.cpu() - plain_scale).abs() <= 0.01 * plain_scale).float().mean() > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_search_on_a_gpu(shape):
    check_search(shape, "cuda")


def test_search_in_the_interpreter():
    pytest.importorskip("triton", reason="no Triton on this platform")
    here = str(Path(__file__).parent)
    code = "import test_kernels as t\nfor shape in t.SHAPES: t.check_search(shape, 'cpu')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": here},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
