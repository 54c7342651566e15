"""Training a quantized checkpoint on the original's output: each step against plain formulas, and that it helps."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from lab_rows import calibration
from random_models import random_model
from reference import pack
from safetensors.torch import load_file

from phicli.checkpoints.int4 import Int4Linear
from phicli.checkpoints.loading import load_base
from phicli.progress import Silent
from phicli.quantization import distill, trainable
from phicli.quantization.calibration import calibration_tokens
from phicli.quantization.grid import GridShape
from phicli.quantization.quantize import quantize_checkpoint
from phicli.quantization.trainable import FRACTION, Stretch, TrainableLinear, direction


def a_linear(bias=False):
    """An int4 linear of 128 inputs and 24 outputs, and the weight that it was rounded from."""
    torch.manual_seed(1)
    integers = torch.randint(0, 16, (24, 128)).to(torch.uint8)
    stored = {"bias": torch.randn(24)} if bias else {}
    linear = Int4Linear(128, 24, stored, torch.float32)
    linear.settle(pack(integers, 4), (torch.rand(24, 2) + 0.5).half(), torch.full((24, 2), 7, dtype=torch.uint8), 4)
    noise = (torch.rand(24, 128) - 0.5) * 1.6
    return linear, linear.weight + noise * linear.scales.float().repeat_interleave(64, 1)


def test_it_starts_as_what_was_rounded():
    linear, weight = a_linear(bias=True)
    wanted, x = linear.weight.clone(), torch.randn(3, 5, 128)
    out = linear(x)
    linear.keep_dense()
    made = TrainableLinear(linear, weight)
    for _ in range(2):  # making the weight changes nothing
        assert torch.equal(made.weight(torch.float32), wanted)
    assert torch.allclose(made(x), out, atol=1e-5)
    assert float(made.offset.abs().max()) <= 0.49 * 2**FRACTION + 1
    inside = (weight - wanted).abs() < 0.48 * linear.scales.float().repeat_interleave(64, 1)
    real = weight / linear.scales.float().repeat_interleave(64, 1) + 7
    held = made.integers() + (made.offset / 2**FRACTION)
    assert inside.any() and torch.allclose(held[inside], real[inside], atol=1e-3)


def test_backward_and_steps_are_those_of_plain_formulas():
    linear, weight = a_linear()
    made, plain = TrainableLinear(linear, weight), weight.double()
    scale = linear.scales.double().repeat_interleave(64, 1)
    position = 7 + weight.double() / scale
    start = (linear.weight.double() / scale + 7).round()
    offset = (position - start).clamp(-0.49, 0.49).mul(2**FRACTION).round()
    stretch = torch.zeros(24, 2, dtype=torch.double)
    m_offset, m_stretch = torch.zeros(24, 128, dtype=torch.double), torch.zeros(24, 2, dtype=torch.double)
    made.pace = 8.0
    for step in range(12):
        torch.manual_seed(step)
        x, target = torch.randn(2, 6, 128, requires_grad=True), torch.randn(2, 6, 24)
        scales = made.scale().double()
        ((made(x) - target) ** 2).sum().backward()

        integers = (start + (offset * 2.0**-FRACTION + 0.5).floor()).clamp(0, 15)
        assert torch.allclose(scales, linear.scales.double() * (1 + stretch), rtol=1e-3)  # in float16
        plain = (integers - 7) * scales.repeat_interleave(64, 1)
        error = 2 * (x.detach().double() @ plain.t() - target)
        assert torch.allclose(x.grad.double(), error @ plain, rtol=1e-4, atol=0.02)
        by_weight = error.flatten(0, 1).t() @ x.detach().double().flatten(0, 1)
        by_stretch = (by_weight * plain).unflatten(1, (2, 64)).sum(-1)
        offset -= round(trainable.OFFSET_STEP * 8 * 2**FRACTION) * (0.9 * m_offset + 0.1 * by_weight).sign()
        stretch -= trainable.STRETCH_STEP * 8 * (0.9 * m_stretch + 0.1 * by_stretch).sign()
        m_offset, m_stretch = 0.99 * m_offset + 0.01 * by_weight, 0.99 * m_stretch + 0.01 * by_stretch
    assert torch.allclose(made.stretch.stretch.double(), stretch, atol=1e-6)
    assert torch.allclose(made.offset.double(), offset, atol=1)  # the start is divided in float32
    assert (integers != start).double().mean() > 0.1


def test_without_a_pace_nothing_learns():
    made = TrainableLinear(*a_linear())
    before = made.offset.clone()
    made(torch.randn(4, 128, requires_grad=True)).sum().backward()
    assert torch.equal(made.offset, before) and not made.momentum.any()


def test_integers_stay_on_the_grid():
    linear, weight = a_linear()
    made = TrainableLinear(linear, weight)
    made.pace = 1000.0
    for sign in (1, -1):
        for _ in range(9):
            made.learn(made.weight(torch.float32), torch.full_like(weight, sign))
            assert int(made.integers().min()) >= 0 and int(made.integers().max()) <= 15


def test_direction_keeps_a_moment():
    momentum = torch.tensor([1.0, -1.0, 0.0])
    sign = direction(momentum, torch.tensor([-5.0, 5.0, 2.0]))
    assert sign.tolist() == [1, -1, 1] and torch.allclose(momentum, torch.tensor([0.94, -0.94, 0.02]))
    one = Stretch(torch.tensor([2.0]))
    one.learn(torch.tensor([3.0]), 1.0)
    assert one.values().item() == pytest.approx(2 * (1 - trainable.STRETCH_STEP))


def test_divergence_is_the_kl_and_its_gradient():
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 7, 33, requires_grad=True), torch.randn(3, 7, 33)
    plain = ours.detach().double().requires_grad_()
    wanted = F.kl_div(plain.log_softmax(-1), theirs.double().log_softmax(-1), reduction="sum", log_target=True)
    found = distill.Divergence.apply(ours, theirs)
    found.backward()
    wanted.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(ours.grad.double(), plain.grad, atol=1e-6)


def test_batches_go_through_all_rows_and_replace_a_share():
    rows = torch.arange(6 * 512).view(6, 512)
    found = list(distill.batches(rows, 3))  # 8 rows each
    assert len(found) == 3 and all(batch.shape == (8, 512) for batch in found)
    origin = torch.stack([row for batch in found for row in batch])
    which = (origin // 512).mode(dim=1).values
    assert torch.equal(which.bincount(), torch.full((6,), 4))
    kept = (origin == rows[which]).double().mean()
    assert 1 - kept.item() == pytest.approx(distill.REPLACED, abs=0.02)


@pytest.fixture
def small_steps(monkeypatch):
    """Of 1,024 tokens, and further in scales and norms, so that a few of them help; integers need hundreds."""
    monkeypatch.setattr(distill, "DISTILL_TOKENS", 1024)
    monkeypatch.setattr(trainable, "STRETCH_STEP", 1e-3)


def divergence_of(model, folder, rows, device="cpu", dtype=torch.float32):
    return distill.divergence(load_base(folder, device, dtype), load_base(model, device, dtype), rows.to(device))


def test_it_brings_the_checkpoint_nearer_to_the_original(tiny, tmp_path, small_steps):
    both = calibration_tokens(tiny, calibration(None, 72, 128))
    tokens, test = both[:64], both[64:]
    reports = {}
    for steps in (0, 25):
        (tmp_path / str(steps)).mkdir()
        reports[steps] = quantize_checkpoint(tiny, tmp_path / str(steps), tokens, shape=GridShape(), distill=steps)
    assert reports[0].distilled is None
    before, after = reports[25].distilled
    assert after < 0.98 * before
    without, trained = (divergence_of(tiny, tmp_path / str(steps), test) for steps in (0, 25))
    assert trained < 0.98 * without
    old, new = (load_file(tmp_path / str(steps) / "model.safetensors") for steps in (0, 25))
    assert {k: (v.shape, v.dtype) for k, v in old.items()} == {k: (v.shape, v.dtype) for k, v in new.items()}
    changed = {name.rpartition(".")[2] for name in old if not torch.equal(old[name], new[name])}
    assert {"scales", "weight"} <= changed <= {"qweight", "scales", "weight"}  # norms, of the weights
    assert torch.equal(old["model.embed_tokens.weight"], new["model.embed_tokens.weight"])


def test_what_does_not_help_is_not_kept(tiny, tmp_path, small_steps, monkeypatch):
    said = []

    class Listening(Silent):
        def warn(self, text: str) -> None:
            said.append(text)

    tokens = calibration_tokens(tiny, calibration(None, 16, 64))
    monkeypatch.setattr(trainable, "STRETCH_STEP", 2.0)
    for steps in (0, 2):
        (tmp_path / str(steps)).mkdir()
        report = quantize_checkpoint(tiny, tmp_path / str(steps), tokens, shape=GridShape(), distill=steps,
                                     progress=Listening())
    assert not report.distilled[1] < report.distilled[0]
    assert report.distilled[1] == report.distilled[0]  # what the checkpoint has, not what was tried
    assert any("did not help" in line for line in said)
    files = [(tmp_path / str(steps) / "model.safetensors").read_bytes() for steps in (0, 2)]
    assert files[0] == files[1]


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma2", "olmo2"])
def test_other_architectures_in_shards(tmp_path, tiny, model_type, small_steps):
    """Separate q, k and v, biases, norms that add one, tied embeddings, an architecture without AWQ's scales."""
    model, out = tmp_path / "in", tmp_path / "out"
    random_model(model, model_type).save_pretrained(model, max_shard_size="150KB")
    shutil.copyfile(tiny / "tokenizer.json", model / "tokenizer.json")  # or the folder is no model
    out.mkdir()
    tokens = torch.randint(3, 96, (16, 64), generator=torch.Generator().manual_seed(0))
    before, after = quantize_checkpoint(model, out, tokens, shape=GridShape(4, 32), distill=25).distilled
    assert after < before
    rows = tokens[torch.randperm(16, generator=torch.Generator().manual_seed(0))][:1]
    assert divergence_of(model, out, rows) == pytest.approx(after, rel=0.02)  # norms are in float16 there


def test_the_command(cli, tmp_path, tiny):
    wrong = cli("quantize", "-m", "tiny", "--root", tmp_path, "--distill", "3", "--algorithm", "rtn")
    assert wrong.code == 2 and "--distill goes with phicli's own AWQ" in wrong.err
    assert cli("quantize", "-m", "tiny", "--root", tmp_path, "--distill", "-1").code == 2
    common = ("quantize", "-m", "tiny", "--root", tmp_path, "--samples", "8", "--seq-len", "32", "--json")
    done = cli(*common, "--distill", "2")
    assert done.code == 0, done.err
    quality = json.loads(done.out)["quality"]
    assert len(quality["distilled"]) == 2 and "distill" in quality["phase_seconds"]
    again = cli(*common)
    assert again.code == 0 and json.loads(again.out)["quality"]["distilled"] is None  # another setting: made anew


@pytest.mark.gpu
def test_on_a_gpu(tiny, tmp_path, small_steps):
    tokens = calibration_tokens(tiny, calibration(None, 64, 128))
    report = quantize_checkpoint(tiny, tmp_path, tokens, shape=GridShape(), device="cuda", distill=25)
    before, after = report.distilled
    assert after < before
    held_out = tokens[torch.randperm(64, generator=torch.Generator().manual_seed(0))][:4]
    assert divergence_of(tiny, tmp_path, held_out, "cuda", torch.bfloat16) == pytest.approx(after, rel=0.05)
