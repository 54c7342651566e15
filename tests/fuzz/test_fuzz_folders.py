"""Damaged model, adapter and stage folders: every file of them that is read."""

import contextlib
import json
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
from fuzzing import EXPECTED, changed, fuzzed, mutated, to_json, values
from hypothesis import strategies as st

from phicli.artifacts.stages import MANIFEST, check_whole, read_manifest, write_sealed
from phicli.artifacts.tensors import check_safetensors
from phicli.checkpoints.peft_folder import read_peft
from phicli.config.measuring import ReportConfig
from phicli.export.adapters import check_adapter
from phicli.export.slots import read_slots
from phicli.hub.gguf import _write_weights, judge_gguf
from phicli.hub.models import check_model
from phicli.progress import SILENT
from phicli.resources import size_of_config, size_of_folder
from phicli.steps.report import report
from phicli.steps.verify import verify
from phicli.text import TextCodec
from phicli.workflow.plan import State, judge

PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"], "bias": "none", "use_rslora": False,
        "alpha_pattern": {"o_proj": 3}, "rank_pattern": {}, "base_model_name_or_path": "tiny"}
TENSORS = {f"base_model.model.model.layers.0.self_attn.o_proj.lora_{side}.weight":
           {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 32]}
           for side, shape, at in (("A", [2, 4], 0), ("B", [4, 2], 32))}
STAGE = {"step": "finetune", "inputs": {"base": "ab", "data": "cd"}, "settings": {"seed": 0}, "seconds": 1.0,
         "quality": {"adapters": {}}, "versions": {"torch": "1"}, "files": {"a": 1}, "hashes": {"a": "ab"},
         "origins": {"base": {"path": "../base", "files": {"a": "ab"}, "made": {"inputs": {"model": "ef"}, "origins": {
             "model": {"path": "/none"}}}}, "data": {"path": "..", "files": {"awq/a": "cd"}}},
         "created": "2026-01-01T00:00:00Z"}
EVALUATED = {"stages": [{"stage": "original", "bytes": 5, "perplexity": 3.5, "missing": None, "adapter": None},
                        {"stage": "onnx", "bytes": 4, "kl": 0.1, "kl_interval": [0.05, 0.2], "missing": None}],
             "answers": [{"prompt": "a", "reference": "b", "answers": {"onnx": "c"}}], "rows": 3, "tokens": 40,
             "eval_data": "rows.jsonl", "inputs": {"original": "ab"}, "origins": {"original": {"path": "awq"}}}


def safetensors(header: bytes, size: int = 64) -> bytes:
    return struct.pack("<Q", len(header)) + header + b"\0" * size


headers = st.one_of(changed(TENSORS).map(lambda found: safetensors(to_json(found))),
                    mutated(safetensors(to_json(TENSORS))), st.binary(max_size=64))


@fuzzed(data=headers)
def test_safetensors_headers(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    try:
        header = check_safetensors(path)
        size = size_of_folder(tmp_path)
    except EXPECTED as e:
        assert str(path) in str(e)
        return
    assert all(entry["data_offsets"][1] <= len(data) for entry in header.values())
    assert size.weight_bytes == len(data) and size.params >= 0


@cache
def small_gguf() -> bytes:
    """A Phi-3 of one layer, 32 wide, and 8 tokens."""
    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(f"{folder}/m.gguf", "phi3")
        for key, count in (("block_count", 1), ("context_length", 64), ("embedding_length", 32), ("vocab_size", 8),
                           ("feed_forward_length", 64), ("attention.head_count", 2), ("attention.head_count_kv", 1)):
            writer.add_uint32(f"phi3.{key}", count)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(list("abcdefgh"))
        shapes = {"token_embd": (8, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,),
                  "blk.0.attn_qkv": (64, 32), "blk.0.attn_output": (32, 32), "blk.0.ffn_up": (128, 32),
                  "blk.0.ffn_down": (32, 64), "rope_factors_long": (8,), "rope_factors_short": (8,)}
        for name, shape in shapes.items():
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Path(f"{folder}/m.gguf").read_bytes()


@fuzzed(data=st.deferred(lambda: st.one_of(st.just(small_gguf()), mutated(small_gguf()),
                                           mutated(small_gguf()[:1200]))))
def test_gguf_files(tmp_path, data):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    try:
        header, config = judge_gguf(path)
        _write_weights(header, config, tmp_path / "out", SILENT)
    except EXPECTED as e:
        assert str(path) in str(e)
        assert data != small_gguf()
    else:
        assert config["num_hidden_layers"] == 1


@fuzzed(config=st.one_of(changed(PEFT).map(to_json), mutated(to_json(PEFT)), values.map(to_json)), weights=headers,
       which=st.sampled_from(["config", "weights", "both"]))
def test_adapter_folders(tmp_path, config, weights, which):
    good = safetensors(to_json(TENSORS))
    (tmp_path / "adapter_config.json").write_bytes(to_json(PEFT) if which == "weights" else config)
    (tmp_path / "adapter_model.safetensors").write_bytes(good if which == "config" else weights)
    try:
        loras = read_peft(tmp_path)
    except EXPECTED as e:
        assert str(tmp_path) in str(e)
    else:
        assert all(lora.a.ndim == lora.b.ndim == 2 for lora in loras.values())


@fuzzed(data=st.one_of(changed(STAGE).map(to_json), mutated(to_json(STAGE)), values.map(to_json)))
def test_manifests(tmp_path, data):
    (tmp_path / MANIFEST).write_bytes(data)
    try:
        manifest = read_manifest(tmp_path)
    except EXPECTED as e:
        assert MANIFEST in str(e)
    else:
        assert manifest is not None and isinstance(manifest.bytes, int)
    verdict = judge(tmp_path, "finetune", {"base": "ab", "data": "cd"}, {"seed": 0})
    assert verdict.state in (State.STALE, State.BROKEN) and verdict.reason  # its file is not there
    with contextlib.suppress(EXPECTED):
        check_whole(tmp_path)


@fuzzed(manifest=changed(STAGE), evaluation=changed(EVALUATED), sealed=st.booleans())
def test_what_report_and_verify_read(tmp_path, manifest, evaluation, sealed):
    """A stage and an evaluation that say anything, with a checksum that fits or none."""
    (tmp_path / "awq").mkdir(exist_ok=True)
    for path, document in ((tmp_path / "awq" / MANIFEST, manifest), (tmp_path / "evaluation.json", evaluation)):
        try:
            write_sealed(path, document) if sealed else path.write_bytes(to_json(document))
        except ValueError:  # letters that no file can hold
            return
    with contextlib.suppress(EXPECTED):
        assert all(one.place for one in verify(tmp_path) if one.depth == 0)
    for form in ("html", "markdown"):
        with contextlib.suppress(EXPECTED):
            assert report(ReportConfig(root=str(tmp_path), format=form)).is_file()


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """A copy of the built-in model whose files may be damaged and mended."""
    folder = tmp_path_factory.mktemp("model")
    for path in tiny.iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


@fuzzed(data=st.data())
def test_model_configs(model, tiny, data):
    good = json.loads((tiny / "config.json").read_text())
    found = data.draw(st.one_of(changed(good).map(to_json), mutated(to_json(good)), values.map(to_json)))
    (model / "config.json").write_bytes(found)
    try:
        config = check_model(model)
    except EXPECTED:
        return
    size_of_config(config, "a test")


@fuzzed(data=st.data())
def test_weight_indexes(model, tiny, data):
    shutil.copyfile(tiny / "config.json", model / "config.json")
    good = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
    index = model / "model.safetensors.index.json"
    index.write_bytes(data.draw(st.one_of(changed(good).map(to_json), mutated(to_json(good)), values.map(to_json))))
    try:
        check_model(model)
    except EXPECTED:
        pass
    finally:
        index.unlink()


@fuzzed(data=st.data())
def test_tokenizers(tiny, tmp_path, data):
    small = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    small["model"]["vocab"] = dict(list(small["model"]["vocab"].items())[:300])
    small["model"]["merges"] = small["model"]["merges"][:2]
    small["added_tokens"] = [token for token in small["added_tokens"] if token["id"] < 300]
    good = to_json(small)
    settings = json.loads((tiny / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_bytes(data.draw(st.one_of(st.just(good), changed(small).map(to_json),
                                                                  mutated(good))))
    (tmp_path / "tokenizer_config.json").write_bytes(data.draw(st.one_of(
        changed(settings).map(to_json), mutated(to_json(settings)), values.map(to_json))))
    (tmp_path / "chat_template.jinja").write_bytes(data.draw(mutated((tiny / "chat_template.jinja").read_bytes())))
    try:
        codec = TextCodec(tmp_path)
        codec.encode_text("Where is Kyoto?")
        codec.encode_chat([{"role": "user", "content": "Where?"}])
    except EXPECTED:
        pass


@cache
def damaged(path):
    """A strategy that is made once: hypothesis keeps those that it has seen, and these hold a file."""
    return mutated(path.read_bytes())


@fuzzed(data=st.data())
def test_optimized_models_and_their_adapters(optimized, tmp_path, data):
    source = optimized / "onnx-ao"
    adapter = next((source / "adapters").iterdir())
    (tmp_path / "a.onnx_adapter").write_bytes(data.draw(damaged(adapter)))
    with contextlib.suppress(EXPECTED):
        check_adapter(source, tmp_path / "a.onnx_adapter")
    (tmp_path / "model.onnx").write_bytes(data.draw(damaged(source / "model.onnx")))
    with contextlib.suppress(EXPECTED):
        read_slots(tmp_path)
