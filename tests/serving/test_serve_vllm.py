"""`phicli serve --engine vllm`: how vLLM is started. It is not here itself; a program in its place says what it got."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from phicli.checkpoints.peft_folder import read_peft
from phicli.cli.engines import IDLE_SERVING
from phicli.config import ServeConfig
from phicli.config.setting import settings_of
from phicli.errors import BadInput, Missing, UsageError
from phicli.serving.server import opened
from phicli.serving.settings import base_name, read_keys
from phicli.serving.vllm import vllm_command, vllm_environment

PROGRAM = """import json, os, sys
print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith(("VLLM", "DO_NOT", "PHICLI"))}]))
"""


def config(root, path, **more):
    return ServeConfig(model="tiny", root=str(root), path=str(path) if path else None, engine="vllm", **more)


def command(*settings, base="mine", **more):
    told = []
    return vllm_command(config(*settings, **more), base, told.append), told


def rewrite(folder, changes=(), left=()):
    """Change an adapter's settings."""
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text()) | dict(changes)
    file.write_text(json.dumps({name: value for name, value in settings.items() if name not in left}))


@pytest.fixture
def root(two_graphs, tmp_path):
    for name in ("cooking", "travel"):
        shutil.copytree(two_graphs / name, tmp_path / "ft" / name)
    return tmp_path


def test_adapters_keep_their_names(two_graphs, root):
    awq, copies = two_graphs / "awq", root / "ft" / ".vllm"
    assert command(root, awq, context=1024)[0][3:] == [
        "serve", str(awq), "--served-model-name", "mine", "--host", "127.0.0.1", "--port", "8000", "--max-num-seqs",
        "8", "--middleware", "phicli.serving.vllm_guard.Guard", "--allowed-origins", "[]", "--max-model-len", "1024",
        "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--lora-modules",
        *(json.dumps({"name": name, "path": str(copies / name)}) for name in ("cooking", "travel"))]
    one = command(root, awq, adapters=("cooking",))[0]
    assert one[one.index("--max-lora-rank") + 1] == "8" and len(one) == one.index("--lora-modules") + 2
    with pytest.raises(BadInput, match="there are: cooking, travel"):
        command(root, awq, adapters=("paris",))
    with pytest.raises(BadInput, match="called 'travel', as the model itself"):
        command(root, awq, base="travel", adapters=("travel",))
    with pytest.raises(Missing, match="no quantized model"):
        command(root, None)


def test_a_port_that_is_free_is_named(two_graphs, root):
    there = command(root, two_graphs / "awq", port=0)[0]
    assert 1024 <= int(there[there.index("--port") + 1]) < 65536


@pytest.mark.parametrize("change", ["scales of their own", "copies of embeddings", "started from LoftQ",
                                    "rank of its own"])
def test_what_vllm_does_not_know_of_an_adapter_is_translated(two_graphs, root, change):
    """It gets plain LoRA that adds the same."""
    folder = root / "ft" / "travel"
    before = read_peft(folder)
    name = next(iter(before))
    settings = json.loads((folder / "adapter_config.json").read_text())
    if change == "scales of their own":
        rewrite(folder, {"alpha_pattern": {name.rpartition(".")[2]: 3 * settings["lora_alpha"]}, "use_rslora": True})
    elif change == "copies of embeddings":
        import torch
        from safetensors import safe_open

        with safe_open(next((two_graphs / "awq").glob("*.safetensors")), "pt") as base:
            copy = base.get_tensor("model.embed_tokens.weight").to(torch.float32).numpy()
        weights = load_file(folder / "adapter_model.safetensors")
        save_file(weights | {"base_model.model.model.embed_tokens.weight": copy}, folder / "adapter_model.safetensors")
        rewrite(folder, {"modules_to_save": ["embed_tokens"]})
    elif change == "started from LoftQ":
        rewrite(folder, {"init_lora_weights": "loftq"})
    else:
        weights = load_file(folder / "adapter_model.safetensors")
        for key in [key for key in weights if f"{name}.lora_" in key]:
            weights[key] = weights[key][:4].copy() if "lora_A" in key else weights[key][:, :4].copy()
        save_file(weights, folder / "adapter_model.safetensors")
        rewrite(folder, {"rank_pattern": {name: 4}})
    expected = read_peft(folder)
    command(root, two_graphs / "awq")
    written = root / "ft" / ".vllm" / "travel"
    settings = json.loads((written / "adapter_config.json").read_text())
    assert {"modules_to_save", "alpha_pattern", "rank_pattern", "use_rslora", "init_lora_weights"}.isdisjoint(settings)
    assert all(".lora_" in key for key in load_file(written / "adapter_model.safetensors"))
    found = read_peft(written)
    assert found.keys() == expected.keys()
    for module, lora in expected.items():
        sums = [one.scaling * one.b.astype(np.float32) @ one.a.astype(np.float32) for one in (lora, found[module])]
        assert np.allclose(*sums, atol=2e-3 * np.abs(sums[0]).max())


def test_an_adapter_that_is_no_plain_lora_is_left_out_unless_it_was_asked_for(two_graphs, root):
    rewrite(root / "ft" / "travel", {"use_dora": True})
    there, told = command(root, two_graphs / "awq")
    assert len(there) == there.index("--lora-modules") + 2 and "travel is left out" in told[0]
    with pytest.raises(BadInput, match="DoRA"):
        command(root, two_graphs / "awq", adapters=("travel",))
    (root / "ft" / "travel" / "adapter_model.safetensors").write_bytes(b"cut")
    rewrite(root / "ft" / "travel", {"use_dora": False})
    assert "travel is left out" in command(root, two_graphs / "awq", base="cooking")[1][1]


def test_another_vllm_of_the_root_keeps_its_adapters(two_graphs, root):
    """vLLM reads an adapter anew when it was put away for others meanwhile."""
    command(root, two_graphs / "awq")
    written = root / "ft" / ".vllm" / "travel" / "adapter_model.safetensors"
    before = written.stat()
    command(root, two_graphs / "awq", adapters=("cooking",))
    command(root, two_graphs / "awq")
    assert (written.stat().st_ino, written.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    rewrite(root / "ft" / "travel", {"lora_alpha": 3})
    command(root, two_graphs / "awq")
    assert written.stat().st_ino != before.st_ino and read_peft(written.parent).keys() == read_peft(
        root / "ft" / "travel").keys()


def test_a_port_that_is_taken_and_a_model_in_onnx_are_refused_before(two_graphs, root):
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(Missing, match="cannot be listened at"):
        command(root, two_graphs / "awq", port=listener.getsockname()[1])
    (root / "onnx-ao").mkdir()
    (root / "onnx-ao" / "genai_config.json").write_text("{}")
    with pytest.raises(BadInput, match="an ONNX model"):
        command(root, root / "onnx-ao")


def test_what_olives_algorithms_write_is_refused_before_vllm_loads_it(two_graphs, root):
    folder = shutil.copytree(two_graphs / "awq", root / "gptq")
    about = json.loads((folder / "config.json").read_text())
    about["quantization_config"]["quant_method"] = "olive"
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match="vLLM cannot read"):
        command(root, folder)


def test_origins_go_to_vllm_and_to_the_guard(two_graphs, root):
    origins = ("https://a.example", "https://b.example")
    there = command(root, two_graphs / "awq", cors_origins=origins)[0]
    assert json.loads(there[there.index("--allowed-origins") + 1]) == [*origins]
    named = vllm_environment(config(root, None, cors_origins=origins), [])["PHICLI_ALLOWED_ORIGINS"]
    assert named.split(",") == [*origins] and vllm_environment(config(root, None), [])["PHICLI_ALLOWED_ORIGINS"] == ""


def test_what_vllm_is_not_told_of_is_all_that_changes_nothing_for_it(two_graphs, root, tmp_path):
    """Each setting, in another state than the usual one."""
    (keys := tmp_path / "keys").write_text("a key")
    keys.chmod(0o600)
    others = {"name": "n", "adapters": ("travel",), "host": "::1", "api_key": "k", "api_key_file": str(keys),
              "allowed_hosts": ("a.example",), "cors_origins": ("https://a.example",), "max_batch": 3, "context": 99}
    for name, value in others.items():
        base = config(root, two_graphs / "awq", port=0)
        changed = base.but(**{name: value})
        told = [(vllm_command(one, base_name(one), lambda text: None), vllm_environment(one, read_keys(one)))
                for one in (base.but(port=18231), changed.but(port=18231))]
        assert told[0] != told[1] and name not in IDLE_SERVING, name
    known = {*others, "model", "root", "path", "port", "engine", "without_key"}
    assert known | {*IDLE_SERVING} == {*settings_of(ServeConfig)} and not known & {*IDLE_SERVING}


def test_a_program_does_not_get_another_engine_than_it_asked_for(root):
    with pytest.raises(UsageError, match="takes this process's place"), opened(config(root, None)):
        pass


def test_names_of_the_server_are_those_that_phicli_itself_would_take(root):
    def hosts(keys=(), **more):
        return vllm_environment(config(root, None, **more), list(keys))["PHICLI_ALLOWED_HOSTS"]

    assert set(hosts().split(",")) == {"localhost", "127.0.0.1", "::1"}
    assert hosts(["k"]) == hosts(host="0.0.0.0") == ""
    named = hosts(["k"], host="0.0.0.0", allowed_hosts=("my.example",)).split(",")
    assert {"my.example", "0.0.0.0", "localhost"} <= {*named}


def test_the_process_becomes_vllm(two_graphs, tmp_path):
    place = tmp_path / "site" / "vllm" / "entrypoints" / "cli"
    place.mkdir(parents=True)
    (place / "main.py").write_text(PROGRAM)

    def run(*paths, options=()):
        sources = map(str, [Path(__file__).parents[2], *paths])
        line = [sys.executable, "-m", "phicli", "serve", "--engine", "vllm", "--path", two_graphs / "awq", "--root",
                tmp_path, "--api-key", "secret", *options]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sources)})

    done = run(tmp_path / "site")
    assert done.returncode == 0, done.stderr
    got, variables = json.loads(done.stdout)
    assert got[:4] == ["serve", str(two_graphs / "awq"), "--served-model-name", "awq"] and "--enable-lora" not in got
    assert variables["VLLM_API_KEY"] == "secret" and variables["DO_NOT_TRACK"] == "1" and "secret" not in done.stderr
    assert "of no effect" not in done.stderr
    idle = run(tmp_path / "site", options=("--device", "auto", "--no-page", "--timeout", "5", "--max-batch", "2"))
    assert "warning: of no effect with --engine vllm: --timeout, --no-page, --device\n" in idle.stderr
    missing = run()
    assert missing.returncode == 4 and "pip install phicli vllm" in missing.stderr
