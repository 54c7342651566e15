"""Group sizes, symmetry, modules in float: the checkpoint's quality, and that the ONNX model keeps it."""

import json

import pytest
import torch
from lab_rows import calibration
from reference import kl_and_agreement, reference_model

from phicli import optimize
from phicli.inference.session import Session
from phicli.quantization.calibration import calibration_tokens
from phicli.quantization.grid import GridShape
from phicli.quantization.quantize import quantize_checkpoint

CASES = {"32": GridShape(4, 32), "64": GridShape(4, 64), "128": GridShape(4, 128),
         "32 symmetric": GridShape(4, 32, True), "128 symmetric": GridShape(4, 128, True)}


@pytest.fixture(scope="module")
def original(tiny):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens(tiny):
    """Calibration, int64 (32, 128), and text of the same kind for the test, (4, 128)."""
    both = calibration_tokens(tiny, calibration(None, 36, 128))
    return both[:32], both[32:]


@pytest.fixture(scope="module")
def made(tiny, tokens, tmp_path_factory):
    """Checkpoint folders by case."""
    root = tmp_path_factory.mktemp("options")
    for name, shape in CASES.items():
        (root / name).mkdir()
        quantize_checkpoint(tiny, root / name, tokens[0], shape=shape)
    return {name: root / name for name in CASES}


def test_smaller_groups_are_closer_and_a_free_zero_point_is(tiny, made, tokens, original):
    kl = {name: kl_and_agreement(original, reference_model(made[name], tiny), tokens[1])[0] for name in CASES}
    assert kl["32"] < kl["64"] < kl["128"] < kl["128 symmetric"] < 2 * kl["128"]
    assert kl["32"] < kl["32 symmetric"] < kl["128 symmetric"]


class _Onnx:
    """A session in the place of a model: logits of token rows."""

    def __init__(self, session: Session):
        self.session = session

    def __call__(self, tokens):
        self.logits = torch.stack([torch.from_numpy(self.session.logits(row.tolist())) for row in tokens])
        return self


@pytest.mark.parametrize("case", ["32", "64", "128", "128 symmetric"])
def test_the_onnx_model_keeps_the_kl(tiny, made, tokens, original, tmp_path, case):
    folder, _ = optimize(root=tmp_path, base=str(made[case]), adapters=[], device="cpu",
                         activations="fp32", head="float", cuda_graph=False)
    ours, _ = kl_and_agreement(original, _Onnx(Session(folder)), tokens[1])
    torchs, _ = kl_and_agreement(original, reference_model(made[case], tiny), tokens[1])
    assert ours == pytest.approx(torchs, rel=1e-3)


def test_skipped_modules_stay_float_and_the_onnx_model_keeps_the_kl(tiny, tokens, original, tmp_path):
    base = tmp_path / "awq"
    base.mkdir()
    quantize_checkpoint(tiny, base, tokens[0], shape=GridShape(), skip=("layers.0.mlp", "o_proj"))
    config = json.loads((base / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == ["layers.0.mlp", "lm_head", "o_proj"]
    from safetensors.torch import load_file

    names = load_file(base / "model.safetensors").keys()
    assert "model.layers.0.mlp.down_proj.weight" in names and "model.layers.2.self_attn.o_proj.weight" in names
    assert "model.layers.2.mlp.down_proj.qweight" in names
    folder, _ = optimize(root=tmp_path, base=str(base), adapters=[], device="cpu", activations="fp32",
                         head="float", cuda_graph=False)
    ours, _ = kl_and_agreement(original, _Onnx(Session(folder)), tokens[1])
    torchs, _ = kl_and_agreement(original, reference_model(base, tiny), tokens[1])
    assert ours == pytest.approx(torchs, rel=1e-3)
