"""What export writes opens in the program that it is for."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx_checkpoints import TEXT_FILES, nearest_awq, random_adapter, random_model

from phicli import BadInput, Conversation, Missing, Session, UsageError, export_as, merge
from phicli.architectures import architecture_of
from phicli.artifacts import stages
from phicli.checkpoints.loading import load_base
from phicli.checkpoints.peft_folder import read_peft
from phicli.quantization import CALIBRATION
from phicli.quantization.scaling import apply_scale, channels

IDS = list(range(40, 72))
CONVERTER = Path(sys.prefix) / "converter" / "convert_hf_to_gguf.py"
FOUNDRY = Path(sys.prefix) / "foundry"


def generated(folder: Path, adapter: str | None = None) -> list[int]:
    """By onnxruntime-genai alone."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(IDS) + 12, do_sample=False)
    generator = og.Generator(model, params)
    if adapter:
        adapters = og.Adapters(model)
        adapters.load(str(folder / "adapters" / f"{adapter}.onnx_adapter"), adapter)
        generator.set_active_adapter(adapters, adapter)
    generator.append_tokens(IDS)
    while not generator.is_done():
        generator.generate_next_token()
    return list(map(int, generator.get_sequence(0)))


def test_a_zip(two_graphs, tmp_path):
    file = export_as("tiny", to="zip", root=two_graphs, output=tmp_path / "a.zip")
    again = export_as("tiny", to="zip", root=two_graphs, output=tmp_path / "b.zip")
    assert file.read_bytes() == again.read_bytes()
    with pytest.raises(BadInput, match="there already"):
        export_as("tiny", to="zip", root=two_graphs, output=file)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "out")
        names = archive.namelist()
    assert {"phicli.json", "adapters/travel.onnx_adapter"} <= {*names} and "base.onnx" not in names
    assert str(two_graphs) not in (tmp_path / "out" / "phicli.json").read_text()
    assert generated(tmp_path / "out", "travel") == generated(two_graphs / "onnx-ao", "travel")
    with Session(tmp_path / "out") as session:  # its manifest tells what belongs to it
        assert session.adapter_names() == ["cooking", "travel"]


def test_a_folder_for_foundry_local(two_graphs, tmp_path):
    folder = export_as("tiny", to="foundry-local", root=two_graphs, output=tmp_path / "foundry")
    about = json.loads((folder / "inference_model.json").read_text())
    assert about == {"Name": two_graphs.name, "PromptTemplate": {
        "prompt": "<|user|>\n{Content}<|end|>\n<|assistant|>\n", "user": "<|user|>\n{Content}<|end|>\n",
        "assistant": "<|assistant|>\n{Content}<|end|>\n", "system": "<|system|>\n{Content}<|end|>\n"}}
    assert generated(folder) == generated(two_graphs / "onnx-ao")
    assert not [*folder.rglob("*adapter*")]


@pytest.mark.skipif(not FOUNDRY.is_dir(), reason="Foundry Local is not where make test puts it")
def test_foundry_local_answers_as_chat_does(two_graphs, tmp_path):
    folder, question = export_as("tiny", to="foundry-local", root=two_graphs, output=tmp_path / "own"), "Where is Rome?"
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("foundry_here.py"), folder, tmp_path / "files", question],
        env={**os.environ, "PYTHONPATH": str(FOUNDRY)}, capture_output=True, text=True)
    with Session(folder) as session:
        answer = Conversation(session, max_new_tokens=24).ask(question)
    assert done.stdout.strip() == answer.text.strip() != "", done.stderr[-2000:]


def test_a_model_package(two_graphs, tmp_path):
    folder = export_as("tiny", to="olive", root=two_graphs, output=tmp_path / "package")
    assert json.loads((folder / "manifest.json").read_text())["components"]
    (variant,) = (path.parent for path in folder.rglob("model.onnx"))
    onnxruntime.InferenceSession(variant / "model.onnx", providers=["CPUExecutionProvider"])
    settings = json.loads((folder / "configs" / "genai_config.json").read_text())
    assert settings["model"]["decoder"].pop("component") == variant.parent.name

    def patched(base, patch):  # RFC 7386
        return {**base, **{k: patched(base.get(k, {}), v) if isinstance(v, dict) else v for k, v in patch.items()}}

    overlay = json.loads((variant / "genai_config_overlay.json").read_text())
    flat = tmp_path / "flat"
    shutil.copytree(folder / "configs", flat)
    shutil.copytree(variant, flat, dirs_exist_ok=True)
    (flat / "genai_config.json").write_text(json.dumps(patched(settings, overlay)))
    assert generated(flat, "cooking") == generated(two_graphs / "onnx-ao", "cooking")


def test_a_model_package_with_variants(two_graphs, tiny_awq, tmp_path):
    root = tmp_path / "lab"
    shutil.copytree(tiny_awq, root / "awq")
    for name in ("travel", "cooking"):
        shutil.copytree(two_graphs / name, root / "ft" / name)
    folder = export_as("tiny", to="olive", root=root, variants=("cpu", "webgpu"))
    (about,) = folder.glob("models/*/metadata.json")
    assert json.loads(about.read_text())["variants"] == {
        "cpu": {"ep": "CPUExecutionProvider"}, "webgpu": {"ep": "WebGpuExecutionProvider"}}
    answers = []
    for variant in ("cpu", "webgpu"):  # whose graph runs on a CPU too, with the adapters of the package
        flat = shutil.copytree(folder / "configs", tmp_path / variant)
        shutil.copytree(about.parent / variant, flat, dirs_exist_ok=True)
        shutil.copy(two_graphs / "onnx-ao" / "genai_config.json", flat)
        answers.append(generated(flat, "cooking"))
    assert answers[0][: len(IDS) + 1] == answers[1][: len(IDS) + 1] != generated(flat)[: len(IDS) + 1]
    with pytest.raises(UsageError, match="--to olive"):
        export_as("tiny", to="zip", root=root, variants=("cpu",))


def change(base: Path, adapter: Path) -> np.ndarray:
    """What an adapter adds to the logits, by transformers and peft."""
    from peft import PeftModel

    ids = torch.tensor([IDS])
    model = load_base(base, "cpu", torch.float32)
    with torch.no_grad():
        before = model(ids).logits[0]
        return (PeftModel.from_pretrained(model, adapter).eval()(ids).logits[0] - before).numpy().ravel()


@pytest.fixture(scope="module")
def scaled(tiny, tmp_path_factory):
    """A root with the built-in model as AWQ scales it, `scaled`, that rounded, `awq`, and an adapter trained on it."""
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("scaled")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        for scaling in architecture_of("phi3").scalings:
            rows = channels(scaling, layer, model.config)
            of_rows = torch.empty(int(rows.max()) + 1).uniform_(0.4, 2.5, generator=generator)
            apply_scale(scaling, layer, of_rows[rows], rows)
    model.save_pretrained(root / "scaled")
    for name in TEXT_FILES:
        if (tiny / name).is_file():
            shutil.copy(tiny / name, root / "scaled")
    nearest_awq(root / "scaled", root / "awq")
    adapter = random_adapter(root / "scaled", root / "ft" / "travel", r=4, lora_alpha=8, rank_pattern={"down_proj": 7},
                             target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], size=0.01)
    stages.write_manifest(adapter, stages.Manifest("finetune", {"base": stages.fingerprint(root / "awq")}, {}))
    return root


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


def test_an_adapter_of_an_awq_model_for_the_original(tiny, scaled, tmp_path):
    """AWQ's scales are undone: as it is, the adapter says something else on the original."""
    folder = export_as("tiny", to="peft", root=scaled, output=tmp_path / "out")
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"], settings["lora_alpha"]) == ("tiny", 7, 7)
    assert {(lora.rank, lora.a.dtype.name) for lora in read_peft(folder).values()} == {(7, "float16")}
    wanted = change(scaled / "scaled", scaled / "ft" / "travel")
    assert difference(wanted, change(tiny, folder)) < 0.03
    assert difference(wanted, change(tiny, scaled / "ft" / "travel")) > 0.3


def test_merged_into_the_original(tiny, scaled, tmp_path):
    merged = merge("tiny", base=tiny, root=scaled, output=tmp_path / "merged").folder
    ids = torch.tensor([IDS])
    with torch.no_grad():
        after, before = (load_base(folder, "cpu", torch.float32)(ids).logits[0] for folder in (merged, tiny))
    assert difference(change(scaled / "scaled", scaled / "ft" / "travel"), (after - before).numpy().ravel()) < 0.03


def test_gguf(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match=r"convert_hf_to_gguf\.py"):
        export_as("tiny", to="gguf", root=tmp_path)
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("raise SystemExit('this model is not known')")
    refused = cli("export", "--model", "tiny", "--to", "gguf", "--root", tmp_path, "--converter", script)
    assert refused.code == 3 and "this model is not known" in refused.err and refused.out == ""
    assert not [*tmp_path.rglob("*.gguf")]
    with pytest.raises(UsageError, match="gguf or peft"):
        export_as("tiny", to="zip", root=tmp_path, adapter="travel")


@pytest.mark.skipif(not CONVERTER.is_file(), reason="llama.cpp's converter is not where make test puts it")
def test_gguf_by_llama_cpp(tiny, tmp_path, monkeypatch):
    """A model with an adapter merged into it, opened by the package gguf and, where it is on PATH, by llama.cpp."""
    gguf, spm = pytest.importorskip("gguf"), pytest.importorskip("sentencepiece")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = random_model(tmp_path / "model", tiny, "llama")
    (model / "tokenizer.json").unlink()  # a tokenizer of its own is nothing llama.cpp knows
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false}')
    spm.SentencePieceTrainer.train(
        input=str(CALIBRATION), model_prefix=str(model / "tokenizer"), vocab_size=600, model_type="bpe",
        byte_fallback=True, minloglevel=2)
    adapter = random_adapter(model, tmp_path / "travel", r=4, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    given = {"root": tmp_path / "root", "adapter": adapter}
    file = export_as(model, to="gguf", outtype="f32", converter=str(CONVERTER), **given)
    merged = load_base(merge(model, **given).folder, "cpu", torch.float32)
    reader = gguf.GGUFReader(file)
    assert reader.get_field("general.architecture").contents() == "llama"
    (down,) = (tensor.data for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    assert torch.equal(torch.tensor(down), merged.model.layers[1].mlp.down_proj.weight)
    if program := shutil.which("llama-perplexity"):
        for chunk, logits in perplexity(program, file, tmp_path):
            with torch.no_grad():
                ours = merged(torch.tensor([chunk])).logits[0, -len(logits) - 1: -1].double().log_softmax(-1).numpy()
            near = logits > logits.min(1, keepdims=True)  # what is further down is not told apart
            assert np.abs(ours - logits)[near].max() < 0.03  # keys and values in float16


def perplexity(program: str, file: Path, scratch: Path) -> Iterator[tuple[list[int], np.ndarray]]:
    """Chunks of 32 tokens, and llama.cpp's logarithms of probabilities after all but the last of the second half.

    They come in steps of less than 3e-4, from the 16th below the largest logit on.
    """
    saved = scratch / "logits"
    subprocess.run([program, "-m", file, "-f", CALIBRATION, "-c", "32", "-b", "32", "-t", "1", "--chunks", "3",
                    "--save-all-logits", saved], check=True, capture_output=True)
    data = saved.read_bytes()
    magic, length, vocabulary, chunks = struct.unpack_from("<8s3i", data)
    tokens = np.frombuffer(data, np.int32, chunks * length, 20).reshape(chunks, length).copy()
    tokens[:, 0] = tokens[0, 0]  # the token that begins a text, which every chunk is given
    rows = np.frombuffer(data, np.uint16, offset=20 + tokens.nbytes)
    rows = rows.reshape(chunks, length // 2 - 1, 4 + vocabulary + vocabulary % 2)
    assert magic == b"_logits_"
    for chunk, row in zip(tokens.tolist(), rows, strict=True):
        scale, least = row[:, :4].copy().view(np.float32).T[..., None]
        yield chunk, row[:, 4: 4 + vocabulary] * scale + least
