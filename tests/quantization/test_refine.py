"""Training a layer's integers and scales on the original's output: against plain formulas, and that it helps."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from lab_rows import calibration
from random_models import random_model
from safetensors.torch import load_file
from torch import nn

from phicli.checkpoints.loading import load_base
from phicli.quantization import refine
from phicli.quantization.calibration import calibration_tokens
from phicli.quantization.grid import GridShape
from phicli.quantization.quantize import quantize_checkpoint
from phicli.quantization.refine import RoundedLinear, rounded

SHAPE = GridShape(4, 64)


def a_linear():
    """A linear of 128 inputs and 24 outputs, and a grid for it whose integers are not all the nearest."""
    torch.manual_seed(1)
    linear = nn.Linear(128, 24)
    scale, zero = (torch.rand(24, 2) * 0.01 + 0.01).half().float(), torch.full((24, 2), 7.0)
    real = SHAPE.groups(linear.weight.detach()) / scale[..., None] + zero[..., None]
    integers = (real.flatten(1) + torch.randn(24, 128)).round().clamp(0, 15)
    return linear, (integers, scale, zero)


def plain_weight(grid):
    integers, scale, zero = grid
    return ((SHAPE.groups(integers) - zero[..., None]) * scale[..., None]).flatten(1)


def test_it_starts_as_what_was_rounded():
    linear, grid = a_linear()
    made, x = RoundedLinear(linear, grid, SHAPE), torch.randn(3, 5, 128)
    assert torch.allclose(made(x), F.linear(x, plain_weight(grid), linear.bias), atol=1e-5)
    assert all(torch.equal(new, old) for new, old in zip(made.grid(), grid, strict=True))
    assert float((made.position - grid[0]).abs().max()) <= refine.EDGE + 1e-5
    real = (SHAPE.groups(linear.weight) / grid[1][..., None] + grid[2][..., None]).flatten(1)
    inside = (real - grid[0]).abs() < refine.EDGE
    assert inside.any() and not inside.all() and torch.allclose(made.position[inside], real[inside], atol=1e-5)


def test_gradients_pass_through_rounding():
    linear, grid = a_linear()
    made = RoundedLinear(linear, grid, SHAPE)
    x, y = torch.randn(2, 6, 128, requires_grad=True), torch.randn(2, 6, 24)
    ((made(x) - y) ** 2).sum().backward()

    weight = plain_weight(grid).double().requires_grad_()
    inputs = x.detach().double().requires_grad_()
    ((F.linear(inputs, weight, linear.bias.double()) - y) ** 2).sum().backward()
    scale = grid[1].double().repeat_interleave(64, 1)
    assert torch.allclose(x.grad.double(), inputs.grad, rtol=1e-4, atol=1e-3)
    assert torch.allclose(made.position.grad.double(), weight.grad * scale, rtol=1e-4, atol=1e-4)
    by_scale = SHAPE.groups(weight.grad * (plain_weight(grid).double() / scale)).sum(-1)
    assert torch.allclose(made.stretch.grad.double(), by_scale * grid[1].double(), rtol=1e-3, atol=1e-3)


def test_a_layer_is_whole_again_whatever_happens():
    layer = nn.Sequential(a_linear()[0], nn.Linear(24, 8))
    before = dict(layer.named_modules())
    with pytest.raises(RuntimeError, match="half"), rounded(layer, {"0": a_linear()[1]}, SHAPE) as linears:
        assert layer.get_submodule("0") is linears["0"]
        raise RuntimeError("stopped half way")
    assert dict(layer.named_modules()) == before


def divergence(model, folder, rows, device="cpu"):
    """KL of the next token's distribution from the original's, mean over tokens, in nats."""
    with torch.no_grad():
        ours, theirs = (load_base(path, device, torch.float32)(rows.to(device)).logits.double().log_softmax(-1)
                        for path in (folder, model))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def quantized(model, out, tokens, steps, shape=None, **more):
    out.mkdir()
    return quantize_checkpoint(model, out, tokens, shape=shape or GridShape(), refine=steps, **more)


def test_it_brings_the_checkpoint_nearer_to_the_original(tiny, tmp_path):
    both = calibration_tokens(tiny, calibration(None, 36, 64))
    tokens, test = both[:24], both[24:]
    reports = {steps: quantized(tiny, tmp_path / str(steps), tokens, steps, rounding="nearest") for steps in (0, 30)}
    assert reports[0].refined is None
    before, after = reports[30].refined
    assert after < 0.97 * before
    assert divergence(tiny, tmp_path / "30", test) < 0.99 * divergence(tiny, tmp_path / "0", test)
    old, new = (load_file(tmp_path / str(steps) / "model.safetensors") for steps in (0, 30))
    assert {k: (v.shape, v.dtype) for k, v in old.items()} == {k: (v.shape, v.dtype) for k, v in new.items()}
    changed = {name.rpartition(".")[2] for name in old if not torch.equal(old[name], new[name])}
    assert {"qweight", "scales"} <= changed


def test_what_does_not_help_is_not_kept(tiny, tmp_path, monkeypatch):
    tokens = calibration_tokens(tiny, calibration(None, 8, 32))
    monkeypatch.setattr(refine, "SCALE_PATH", 100.0)
    report = quantized(tiny, tmp_path / "tried", tokens, 3)
    assert report.refined[1] == report.refined[0]
    quantized(tiny, tmp_path / "plain", tokens, 0)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("tried", "plain")]
    assert files[0] == files[1]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "olmo2"])
def test_other_architectures_and_the_same_bytes_again(tmp_path, tiny, model_type):
    """Separate q, k and v, biases, norms that add one, windows, an architecture without AWQ's scales."""
    model = tmp_path / "in"
    random_model(model, model_type).save_pretrained(model)
    shutil.copyfile(tiny / "tokenizer.json", model / "tokenizer.json")  # or the folder is no model
    tokens = torch.randint(3, 96, (16, 64), generator=torch.Generator().manual_seed(0))
    files = []
    for name in ("one", "again"):
        before, after = quantized(model, tmp_path / name, tokens, 25, GridShape(4, 32), rounding="nearest").refined
        assert after < 0.98 * before
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_all_linears_left_in_float(tiny, tmp_path):
    tokens = calibration_tokens(tiny, calibration(None, 4, 32))
    assert quantized(tiny, tmp_path / "out", tokens, 2, skip=("proj",)).refined is None


def test_with_a_plan_and_with_one_row(tiny, tmp_path):
    tokens = calibration_tokens(tiny, calibration(None, 1, 64))
    quantized(tiny, tmp_path / "plain", tokens, 0, rounding="nearest", save_plan_to=tmp_path / "plan")
    found = quantized(tiny, tmp_path / "out", tokens, 2, rounding="nearest", plan=tmp_path / "plan").refined
    assert found == (0.0, 0.0)  # nothing is held out of one row


def test_the_command(cli, tmp_path, tiny):
    wrong = cli("quantize", "-m", "tiny", "--root", tmp_path, "--refine", "3", "--algorithm", "rtn")
    assert wrong.code == 2 and "--refine goes with phicli's own AWQ" in wrong.err
    assert cli("quantize", "-m", "tiny", "--root", tmp_path, "--refine", "-1").code == 2
    common = ("quantize", "-m", "tiny", "--root", tmp_path, "--samples", "8", "--seq-len", "32", "--json")
    done = cli(*common, "--refine", "6")
    assert done.code == 0, done.err
    quality = json.loads(done.out)["quality"]
    assert quality["refined"][1] <= quality["refined"][0] and "refine" in quality["phase_seconds"]
    again = cli(*common)
    assert again.code == 0 and json.loads(again.out)["quality"]["refined"] is None  # another setting: made anew


@pytest.mark.gpu
def test_on_a_gpu(tiny, tmp_path):
    both = calibration_tokens(tiny, calibration(None, 72, 128))
    tokens, test = both[:64], both[64:]
    before, after = quantized(tiny, tmp_path / "out", tokens, 40, device="cuda").refined
    assert after < 0.9 * before
    quantized(tiny, tmp_path / "plain", tokens, 0, device="cuda")
    assert divergence(tiny, tmp_path / "out", test) < 0.95 * divergence(tiny, tmp_path / "plain", test)
