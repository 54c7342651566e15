"""Plans: searched once, saved, applied again, checked against the model."""

import shutil

import pytest
import torch
from lab_rows import calibration
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phicli.errors import BadInput
from phicli.quantization.calibration import calibration_tokens
from phicli.quantization.grid import GridShape
from phicli.quantization.quantize import quantize_checkpoint


def quantize(model, out, tokens, **more):
    out.mkdir()
    report = quantize_checkpoint(model, out, tokens, **{"shape": GridShape(), **more})
    return report, (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """Tokens, the plan's file, the report of the run that saved it, and what that run made."""
    root = tmp_path_factory.mktemp("plan")
    tokens = calibration_tokens(tiny, calibration(None, 16, 128))
    return tokens, root / "plan.safetensors", *quantize(tiny, root / "out", tokens,
                                                        save_plan_to=root / "plan.safetensors")


def test_applied_again_it_gives_the_same_bytes(tiny, saved, tmp_path):
    tokens, file, first, made = saved
    report, again = quantize(tiny, tmp_path / "out", tokens, plan=file)
    assert again == made and report.layer_errors == first.layer_errors
    assert "scales" not in report.phase_seconds and "scales" in first.phase_seconds


def test_nearest_rounding_needs_no_calibration(tiny, saved, tmp_path):
    tokens, file, _, _ = saved
    report, _ = quantize(tiny, tmp_path / "out", tokens[:1], plan=file, rounding="nearest")
    assert report.layer_errors == [] and "collect" not in report.phase_seconds
    quantize(tiny, tmp_path / "searched", tokens, rounding="nearest")
    applied, searched = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "searched"))
    first_layer = [name for name in searched if ".layers.0." in name]  # whose inputs are the same in both
    assert len(first_layer) == 14 and all(torch.equal(applied[name], searched[name]) for name in first_layer)


def test_the_same_model_in_other_shards_fits(tiny, saved, tmp_path):
    tokens, file, _, made = saved
    shutil.copytree(tiny, tmp_path / "model")
    tensors = load_file(tiny / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / "model" / f"part-{i}.safetensors")
    _, again = quantize(tmp_path / "model", tmp_path / "out", tokens, plan=file)
    assert again == made


def flip(file):
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def other_file(file):
    save_file({"a": torch.zeros(2)}, file)


def drop_layer(file):
    """What an older version could have saved: whole in itself, but without a linear."""
    from phicli.quantization.plan import _checksum

    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    tensors = {n: t for n, t in load_file(file).items() if "layers.2.mlp.down_proj" not in n}
    save_file(tensors, file, metadata={**about, "checksum": _checksum(tensors)})


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (flip, {}, "checksum"),
        (cut, {}, "truncated"),
        (other_file, {}, "not a plan"),
        (drop_layer, {}, r"layers\.2"),
        (lambda file: file.unlink(), {}, "no such plan"),
        (None, {"shape": GridShape(4, 64)}, "group_size '128', not '64'"),
        (None, {"shape": GridShape(symmetric=True)}, "symmetric"),
        (None, {"skip": ("o_proj",)}, "skip"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, saved, tmp_path, damage, options, message):
    tokens, file, _, _ = saved
    mine = tmp_path / "plan.safetensors"
    shutil.copyfile(file, mine)
    if damage:
        damage(mine)
    with pytest.raises(BadInput, match=message):
        quantize(tiny, tmp_path / "out", tokens, plan=mine, **options)
    assert list((tmp_path / "out").iterdir()) == []


def test_another_model_is_refused(tiny, saved, tmp_path):
    tokens, file, _, _ = saved
    shutil.copytree(tiny, tmp_path / "model")
    tensors = load_file(tiny / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += 0.01
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(BadInput, match="another model"):
        quantize(tmp_path / "model", tmp_path / "out", tokens, plan=file)
