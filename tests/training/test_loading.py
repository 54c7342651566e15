"""Every kind of base, against the same weights unpacked by someone else."""

import json
import shutil

import pytest
import torch
from bases import quantized
from reference import reference_model
from safetensors.torch import load_file, save_file
from transformers.quantizers import auto

from phicli.checkpoints.int4 import Int4Linear
from phicli.checkpoints.loading import linear_names, load_base
from phicli.errors import BadInput
from phicli.resources import estimates

TOKENS = torch.arange(10, 90).view(2, 40)


def packed(model) -> list[Int4Linear]:
    return [m for m in model.modules() if isinstance(m, Int4Linear)]


def edited(folder, target, *, config=None, drop=None):
    """A copy of a model with its quantization settings changed, or tensors left out."""
    shutil.copytree(folder, target)
    if config:
        path = target / "config.json"
        document = json.loads(path.read_text())
        document["quantization_config"].update(config)
        path.write_text(json.dumps(document))
    if drop:
        tensors = {k: v for k, v in load_file(target / "model.safetensors").items() if not k.endswith(drop)}
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_awq_computes_what_its_integers_say(awq, tiny, share, monkeypatch):
    monkeypatch.setattr(estimates, "UNPACKED_SHARE", share)
    model = load_base(awq, "cpu", torch.float32)
    assert len(packed(model)) == len(linear_names(tiny)) == 16
    assert {m.dense is not None for m in packed(model)} == {share > 0}
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert torch.allclose(model(TOKENS).logits, reference_model(awq, tiny)(TOKENS).logits, atol=1e-3)


def test_olive_checkpoint_computes_what_olive_computes(rtn):
    from olive.model import HfModelHandler

    with torch.no_grad():
        ours = load_base(rtn, "cpu", torch.float32)
        theirs = HfModelHandler(str(rtn), load_kwargs={"torch_dtype": "float32"}).load_model()
        assert packed(ours)
        assert not packed(theirs)
        assert torch.allclose(ours(TOKENS).logits, theirs(TOKENS).logits, atol=1e-3)


def test_quantizers_of_others_are_put_back(awq):
    before = dict(auto.AUTO_QUANTIZER_MAPPING), dict(auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
    load_base(awq, "cpu", torch.float32)
    assert (dict(auto.AUTO_QUANTIZER_MAPPING), dict(auto.AUTO_QUANTIZATION_CONFIG_MAPPING)) == before


def test_unquantized(tiny):
    model = load_base(tiny, "cpu", torch.float32)
    assert not packed(model)
    assert model.dtype == torch.float32


def test_symmetric_awq_without_zero_points(awq, tmp_path):
    folder = edited(awq, tmp_path / "m", config={"zero_point": False}, drop=".qzeros")
    assert all(torch.all(m.qzeros == 8) for m in packed(load_base(folder, "cpu", torch.float32)))


def test_linears_that_were_left_unquantized(tiny, tmp_path):
    model = load_base(quantized(tiny, tmp_path, skip=["down_proj"]), "cpu", torch.float32)
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear
    assert len(packed(model)) == 12


@pytest.mark.parametrize(("change", "message"), [
    ({"config": {"quant_method": "gptq"}}, "quantization 'gptq' cannot be trained on"),
    ({"config": {"version": "gemv"}}, "another version than 4-bit gemm"),
    ({"drop": "layers.1.mlp.down_proj.scales"}, "weights missing"),
    ({"drop": "layers.1.mlp.down_proj.qweight"}, "weights missing"),
])
def test_bases_that_cannot_be_used(awq, tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        load_base(edited(awq, tmp_path / "m", **change), "cpu", torch.float32)
