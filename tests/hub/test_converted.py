"""A model with SentencePiece's tokenizer.model alone, and one with pickled weights alone."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import torch
from random_models import random_model
from safetensors.torch import load_file

from phicli.errors import BadInput
from phicli.hub.models import local_tokenizer, resolve_model
from phicli.text import TextCodec

TEXTS = ["Where is Kyoto, and when are the orange gates quiet?", "two  spaces\nand a line", "naïve café 日本 🙂"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def slow(data_file, tmp_path_factory):
    """A small Llama as the first ones came: tokenizer.model, no tokenizer.json."""
    folder = tmp_path_factory.mktemp("slow")
    text = folder / "text"
    text.write_text("\n".join(" ".join(json.loads(line).values()) for line in data_file.read_text().splitlines()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=600, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
    for name in ("text", "tokenizer.vocab"):
        (folder / name).unlink()
    random_model(folder, "llama", vocab_size=600)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False}))
    return folder


def test_tokenizer_model_gives_the_ids_that_sentencepiece_gives(slow):
    before = sorted(path.name for path in slow.iterdir())
    folder = resolve_model(str(slow))
    assert folder == local_tokenizer(str(slow)) == resolve_model(str(slow)) and folder != slow
    assert sorted(path.name for path in slow.iterdir()) == before
    assert (folder / "model.safetensors").samefile(slow / "model.safetensors")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(slow / "tokenizer.model"))
    codec = TextCodec(folder)
    for text in TEXTS:
        assert codec.encode_text(text) == theirs.encode(text)


def test_a_damaged_one_is_refused(slow, tmp_path):
    shutil.copytree(slow, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    with pytest.raises(BadInput, match=r"a tokenizer of . tokens"):
        resolve_model(str(tmp_path / "model"))


def test_the_cure_for_pickled_weights_works(tiny, tmp_path):
    folder = tmp_path / "a model's"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="pickled weights") as refused:
        resolve_model(str(folder))
    command = shlex.split(refused.value.hint.removeprefix("if you trust them: "))
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    cured = load_file(resolve_model(f"{folder}-safetensors") / "model.safetensors")
    assert cured.keys() == weights.keys() and all(torch.equal(cured[name], weights[name]) for name in weights)
