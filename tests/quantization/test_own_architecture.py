"""A family whose parts have other names is one entry of ARCHITECTURES, from the checkpoint to the ONNX model."""

import shutil

import pytest
import torch
from random_models import random_model
from reference import reference_model

from phicli import Session, optimize, quantize
from phicli.architectures import ARCHITECTURES, Architecture, Scaling

TOKENS = 4096  # of the built-in model's tokenizer


@pytest.fixture
def phi_2(tmp_path, tiny, monkeypatch):
    """A small Phi-2: attention and MLP side by side, biases, an output projection of attention called "dense"."""
    monkeypatch.setitem(ARCHITECTURES, "phi", Architecture((
        Scaling("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1")),
        Scaling("self_attn.v_proj", ("self_attn.dense",), "value"),
    ), norm="model.final_layernorm", modules={"self_attn.dense": "self_attn.o_proj"}))
    random_model(tmp_path / "model", "phi", vocab_size=TOKENS)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny / name).is_file():
            shutil.copy(tiny / name, tmp_path / "model")
    return tmp_path / "model"


def test_a_family_with_other_names(phi_2, tmp_path):
    settings = {"root": str(tmp_path / "root"), "device": "cpu"}
    done = quantize(str(phi_2), samples=8, seq_len=64, group_size=32, **settings)
    errors = done.manifest.quality["layer_errors"]
    assert len(errors) == 2 and max(errors) < 0.2
    folder = optimize(str(phi_2), head="float", activations="fp32", **settings).folder
    model, ids = reference_model(done.folder, phi_2), list(range(5, 45))
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].double()
    found = torch.from_numpy(Session(folder, "cpu").logits(ids)).double()
    assert (found - wanted).norm() < 0.02 * wanted.norm()  # rounding itself costs 0.08
