"""Streaming and scaling on small random models of every architecture that the table knows."""

import pytest
import torch
from random_models import random_model
from reference import dequantized_state
from transformers import AutoModelForCausalLM

from phicli.architectures import ARCHITECTURES, last
from phicli.errors import BadInput
from phicli.progress import Silent
from phicli.quantization.grid import GridShape
from phicli.quantization.layer import LayerWork, forward
from phicli.quantization.phases import Phases
from phicli.quantization.quantize import quantize_checkpoint
from phicli.quantization.shards import ShardWriter
from phicli.quantization.streaming import LayeredModel, Weights

SCALED = [name for name, known in ARCHITECTURES.items() if known.scalings]
CASES = [*((name, 2) for name in SCALED), ("phi3", 4), ("llama", 4)]


@pytest.mark.parametrize(("model_type", "key_value_heads"), CASES)
def test_scaled_layers_compute_the_same_function(tmp_path, model_type, key_value_heads):
    reference = random_model(tmp_path, model_type, key_value_heads)
    tokens = torch.randint(3, 96, (3, 40))
    model = LayeredModel(tmp_path, torch.device("cpu"))
    rows, keywords = model.start(tokens)
    hidden = [torch.cat(rows)]
    for index in range(2):
        layer = model.load_layer(index)
        before = forward(layer, hidden[0], keywords[index])
        work = LayerWork(layer, f"{model.prefix}{index}.", GridShape(4, 32), (), Phases(model.device))
        weights = {name: work.linear(name).weight.clone() for name in work.names}
        work.collect(hidden, keywords[index])
        work.search(ARCHITECTURES[model_type].scalings, model.config)
        after = forward(layer, hidden[0], keywords[index])
        assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))
        scaled = {name for scaling in ARCHITECTURES[model_type].scalings for name in scaling.consumers}
        assert all(not torch.equal(weights[name], work.linear(name).weight) for name in scaled)
        hidden = [before]
    with torch.no_grad():  # the streamed layers are the model
        base = reference.get_decoder()
        norm = base.get_submodule(last(ARCHITECTURES[model_type].norm))
        assert torch.allclose(norm(hidden[0]), base(tokens).last_hidden_state, atol=1e-4)


@pytest.mark.parametrize(("model_type", "dtype"), [
    (name, (torch.float32, torch.bfloat16, torch.float16)[i % 3]) for i, name in enumerate(SCALED)])
@pytest.mark.parametrize("tied", [False, True])
def test_every_architecture_from_any_float_type(tmp_path, model_type, dtype, tied):
    """In shards; what is not quantized is kept, and the whole computes nearly what the original does."""
    folder, out = tmp_path / "in", tmp_path / "out"
    model = random_model(folder, model_type, tie_word_embeddings=tied).to(dtype)
    model.save_pretrained(folder, max_shard_size="150KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    out.mkdir()
    tokens = torch.randint(3, 96, (8, 64))
    quantize_checkpoint(folder, out, tokens, shape=GridShape(4, 32))
    before = dict(Weights(folder).load(Weights(folder).names()))
    after = dequantized_state(out)
    assert ("lm_head.weight" in before) == ("lm_head.weight" in after) == (not tied)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"].half().float())
    assert after.keys() == before.keys()
    original, rounded = model.float(), AutoModelForCausalLM.from_config(model.config).float().eval()
    rounded.load_state_dict(after, strict=False)
    a, b = (m(tokens).logits.double() for m in (original, rounded))
    assert (a - b).norm() < 0.25 * a.norm()


def test_unknown_architecture_is_clipped_without_scales(tmp_path):
    said = []

    class Listening(Silent):
        def warn(self, text):
            said.append(text)

    folder, out = tmp_path / "in", tmp_path / "out"
    random_model(folder, "stablelm")
    out.mkdir()
    tokens = torch.randint(3, 96, (4, 40))
    report = quantize_checkpoint(folder, out, tokens, shape=GridShape(4, 32), progress=Listening())
    assert "stablelm" in said[0] and len(report.layer_errors) == 2
    assert any(name.endswith("qweight") for name in Weights(out).names())


def test_nan_in_a_weight_is_named_and_nothing_is_written(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    model = random_model(folder, "llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    model.save_pretrained(folder)
    out.mkdir()
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.up_proj"):
        quantize_checkpoint(folder, out, torch.randint(3, 96, (4, 40)), shape=GridShape(4, 32))


def test_activations_that_overflow_are_named(tmp_path):
    model = random_model(tmp_path / "in", "llama")
    with torch.no_grad():
        for name in ("gate_proj.weight", "up_proj.weight"):
            model.model.layers[0].mlp.get_parameter(name).fill_(6e4)
        model.model.layers[0].post_attention_layernorm.weight.fill_(6e4)
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match=r"input of model\.layers\.0\.mlp\.down_proj"):
        quantize_checkpoint(tmp_path / "in", tmp_path / "out", torch.randint(3, 96, (4, 40)), shape=GridShape(4, 32))


def test_shards_and_index(tmp_path):
    tensors = {f"t{i}": torch.randn(100, 10) for i in range(5)}
    with ShardWriter(tmp_path, limit=4000) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        assert writer.finish() == 5 * 2000
    assert sorted(p.name for p in tmp_path.glob("*.safetensors"))[0] == "model-00001-of-00003.safetensors"
    weights = Weights(tmp_path)
    assert {n: t.float() for n, t in weights.load(weights.names())}.keys() == tensors.keys()
    for name, tensor in weights.load(list(tensors)):
        assert torch.equal(tensor, tensors[name].half())


def test_sharded_input_gives_the_same_result(tmp_path):
    model = random_model(tmp_path / "whole", "phi3")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    tokens, results = torch.randint(3, 96, (4, 40)), []
    for name in ("whole", "shards"):
        out = tmp_path / f"{name}-out"
        out.mkdir()
        quantize_checkpoint(tmp_path / name, out, tokens, shape=GridShape(4, 32))
        results.append(dict(Weights(out).load(sorted(Weights(out).names()))))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])


def test_a_cpu_made_for_bfloat16_computes_in_it(tmp_path, monkeypatch):
    random_model(tmp_path, "llama")
    model = LayeredModel(tmp_path, torch.device("cpu"))
    rows, keywords = model.start(torch.randint(3, 96, (4, 40)))
    layer, x, works = model.load_layer(0), torch.cat(rows), []
    with torch.no_grad():
        exact = forward(layer, x, keywords[0])
        for asked in (lambda hidden: False, lambda hidden: hidden == x.shape[-1]):
            monkeypatch.setattr("phicli.quantization.layer.cpu_takes_bfloat16", asked)
            works.append(LayerWork(layer, model.prefix_of(0), GridShape(4, 32), (), Phases(model.device)))
            works[-1].collect([x], keywords[0])
        rounded = forward(layer, x, keywords[0])
    change = (rounded - exact).abs().max() / exact.abs().max()
    assert rounded.dtype == torch.float32 and 0 < change < 0.01
    for name, gram in works[0].gram.items():
        difference = (works[1].gram[name] - gram).abs().max() / gram.abs().max()
        assert works[1].gram[name].dtype == torch.float32 and difference < 0.01
    assert torch.equal(forward(layer, x, keywords[0]).detach(), exact)  # what is trained stays exact
