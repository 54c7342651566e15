"""GGUF files as models: each family's comes back as it was, damaged and foreign ones are refused in a sentence."""

import json
import struct

import gguf
import pytest
import torch
from family_models import FAMILIES, make
from gguf_files import write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from phicli.artifacts.gguf import read_gguf
from phicli.errors import BadInput
from phicli.hub.gguf import unpack_gguf
from phicli.hub.models import local_tokenizer, resolve_model
from phicli.progress import SILENT
from phicli.resources import size_of_folder, size_of_model
from phicli.text import TextCodec

YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 8192}
MORE = {"Qwen2.5 and 3 with YaRN": YARN,
        **{name: {"rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.19}
           for name in ("Phi-3 mini 128k, Phi-3.5 mini", "Phi-4 mini")}}
KINDS = ("phi3", "llama", "mistral", "qwen2", "qwen3")
ALIKE = ("Phi-4", "Llama 3.1, 3.3", "SmolLM2")  # as others, to a file
HERE = [family for family in FAMILIES if family.kind in KINDS and family.name not in ALIKE]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "phicli" / "gguf"


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory):
    """The built-in model as a GGUF file with float16 weights."""
    return write_gguf(tiny, tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.mark.parametrize("family", HERE, ids=lambda family: family.name)
def test_a_family_comes_back_with_its_weights_and_its_arithmetic(family, tiny, tmp_path):
    source = make(family, tmp_path / "source", tiny)
    back = unpack_gguf(write_gguf(source, tmp_path / "model.gguf", **MORE.get(family.name, {})), SILENT)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, back))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    ids = torch.randint(0, 4096, (1, 40), generator=torch.Generator().manual_seed(0))
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (source, back)]
    with torch.no_grad():
        first, second = (model(ids).logits for model in models)
    assert torch.allclose(first, second, atol=1e-4)
    ours, theirs = (model.config.rope_parameters for model in reversed(models))  # what shows in long texts only
    assert all(ours[key] == pytest.approx(theirs[key]) or ours[key] == theirs[key] for key in theirs if key != "type")
    for name in ("sliding_window", "max_position_embeddings"):
        assert getattr(models[1].config, name, None) == getattr(models[0].config, name, None)
    ends = json.loads((back / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [0, 4]


def test_tokens_and_layout_are_those_of_the_original(small, tiny):
    back, original = TextCodec(resolve_model(str(small))), TextCodec(tiny)
    talk = [{"role": "user", "content": "Where  is Kyoto? 2026 <|end|> café\n"}]
    assert back.encode_chat(talk) == original.encode_chat(talk)
    assert back.special.keys() == original.special.keys()


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.BF16])
def test_packed_weights_are_unpacked_as_llama_cpp_means_them(tiny, tmp_path, kind):
    back = load_file(unpack_gguf(write_gguf(tiny, tmp_path / "m.gguf", kind), SILENT) / "model.safetensors")
    for name, tensor in load_file(tiny / "model.safetensors").items():
        if tensor.ndim == 2:
            meant = gguf.quants.dequantize(gguf.quants.quantize(tensor.float().numpy(), kind), kind)
            assert torch.equal(torch.tensor(meant).to(back[name].dtype), back[name])
            assert back[name].dtype == (torch.bfloat16 if kind.name == "BF16" else torch.float16)


def test_it_is_unpacked_once_and_again_where_the_file_is_another(small, tiny, tmp_path, cache):
    assert local_tokenizer(str(small)) is None
    folder = resolve_model(str(small))
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert folder.parent == cache and local_tokenizer(str(small)) == folder == resolve_model(str(small))
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert resolve_model(str(write_gguf(tiny, tmp_path / "small.gguf", gguf.GGMLQuantizationType.Q8_0))) != folder
    assert len(list(cache.iterdir())) == 2


def test_its_size_is_told_from_its_header(small, tiny):
    told, real = size_of_model(str(small)), size_of_folder(tiny)
    for name in ("layer_params", "outer_params", "layers", "vocab", "hidden", "widest", "largest", "edges"):
        assert getattr(told, name) == getattr(real, name), name
    assert told.weight_bytes == pytest.approx(2 * real.params, rel=0.01)


REFUSED = [
    ({}, "blk.1.attn_norm.weight", "blk.1.attn_norm.weight is missing"),
    ({}, "token_embd.weight", "token_embd.weight is missing"),
    ({"expert_count": 8}, "", r"a mixture of experts \(expert_count\)"),
    ({"expert_feed_forward_length": 8}, "", "its setting phi3.expert_feed_forward_length is not understood"),
    ({"attention.sliding_window_pattern": 2}, "", "its setting phi3.attention.sliding_window_pattern"),
]


@pytest.mark.parametrize(("more", "without", "said"), REFUSED)
def test_what_is_not_understood_is_refused(tiny, tmp_path, more, without, said, cache):
    with pytest.raises(BadInput, match=said):
        resolve_model(str(write_gguf(tiny, tmp_path / "m.gguf", without=without, **more)))
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(("old", "new", "said"), [
    (b"general.architecture\x08\0\0\0\x04\0\0\0\0\0\0\0phi3", b"general.architecture\x08\0\0\0\x04\0\0\0\0\0\0\0bert",
     "the architecture 'bert' is not read from GGUF"),
    (b"GGUF\x03", b"GGUF\x09", "version 9, known are 2 and 3"),
    (b"GGUF", b"GGML", "does not begin with GGUF"),
    (b"phi3.block_count\x04\0\0\0\x04", b"phi3.block_count\x04\0\0\0\x05", "its settings say 5 layers, the weights "),
    (b"embedding_length\x04\0\0\0\0\x01", b"embedding_length\x04\0\0\0\0\x02", "by config.json"),
    (b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0gpt2", b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0bert",
     "its tokenizer .'bert', 'default'. is not understood"),
    (b"blk.0.attn_norm.weight", b"blk.0.attn_n\xffrm.weight", "damaged GGUF file: 'utf-8' codec"),
])
def test_files_of_strangers(small, tmp_path, old, new, said):
    data = small.read_bytes()
    assert data.count(old) == 1
    (tmp_path / "m.gguf").write_bytes(data.replace(old, new))
    with pytest.raises(BadInput, match=said):
        resolve_model(str(tmp_path / "m.gguf"))


def test_a_header_that_promises_more_than_there_is(small, tmp_path):
    data = small.read_bytes()
    for length in (0, 3, 20, 4000, len(small.read_bytes()) - 100):
        (tmp_path / "m.gguf").write_bytes(data[:length])
        with pytest.raises(BadInput, match=r"header has no end|does not begin|truncated|damaged"):
            resolve_model(str(tmp_path / "m.gguf"))
    many = data[:8] + struct.pack("<QQ", 1 << 62, 1 << 62) + data[24:]
    (tmp_path / "m.gguf").write_bytes(many)
    with pytest.raises(BadInput):
        read_gguf(tmp_path / "m.gguf")
