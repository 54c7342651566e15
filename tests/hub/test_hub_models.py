"""Models of the hub from a server that talks as the hub does: what is fetched, and what is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import write_gguf

sys.path.insert(0, str(Path(__file__).parent))
from served_hub import served

MIXTURE = b'{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8}'
WEIGHTS = {"model.safetensors": b"0" * 1000, "pytorch_model.bin": b"0", "modeling.py": b"raise SystemExit"}
CALL = """
import json, sys
from phicli.errors import PhicliError
from phicli.hub.models import local_tokenizer, resolve_model
from phicli.resources import size_of_model
for name, reference in json.loads(sys.argv[1]):
    call = {"resolve": resolve_model, "size": lambda r: size_of_model(r, fetch=True).source,
            "local": local_tokenizer}[name]
    try:
        print(call(reference))
    except PhicliError as e:
        print(type(e).__name__, e.message, "|", e.hint)
"""


@pytest.fixture
def call(tmp_path):
    """What each call of a function with a reference gave, from a process with caches of its own."""
    def run(*asked, **environment):
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
                       "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment}
        done = subprocess.run([sys.executable, "-c", CALL, json.dumps(asked)], text=True, check=True, env=environment,
                              stdout=subprocess.PIPE)
        return done.stdout.splitlines()

    return run


def fetched(asked):
    return {path.rpartition("/")[2] for path in asked if "/resolve/" in path}


def test_a_family_that_is_refused_is_not_fetched(call):
    with served("models", {"config.json": MIXTURE, **WEIGHTS}) as (endpoint, asked):
        found = call(("resolve", "owner/served"), ("size", "owner/served"), HF_ENDPOINT=endpoint)
    assert all(line.startswith("BadInput a mixture of experts (num_local_experts)") for line in found)
    assert fetched(asked) == {"config.json"}


def test_a_size_takes_config_json_alone_and_a_model_what_it_needs_and_both_are_there_offline_then(call, tiny):
    files = {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()} | {"other.bin": b"0",
                                                                                          "modeling.py": b"0"}
    with served("models", files) as (endpoint, asked):
        (size,) = call(("size", "owner/served"), HF_ENDPOINT=endpoint)
        assert size == "its config.json" and fetched(asked) == {"config.json"}
        first, folder = call(("local", "owner/served"), ("resolve", "owner/served"), HF_ENDPOINT=endpoint)
    assert first == "None" and (Path(folder) / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not fetched(asked) & {"other.bin", "modeling.py"}
    online = ("resolve", "owner/served"), ("local", "owner/served"), ("size", "owner/served")
    there = [folder, folder, "its config.json"]
    assert call(*online, HF_HUB_OFFLINE="1") == there
    assert call(*online, HF_ENDPOINT="http://127.0.0.1:9") == there
    lacking, unreached = (call(("resolve", "owner/none"), HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE=offline)[0]
                          for offline in "10")
    assert lacking.startswith("Missing no such folder, and not in the hub's cache; HF_HUB_OFFLINE keeps it")
    assert lacking.endswith("| online: hf download owner/none") and unreached.startswith("RemoteError huggingface.co: ")


def test_a_gguf_file_of_the_hub(call, tiny, tmp_path):
    name = "owner/served/small.gguf"
    files = {"small.gguf": write_gguf(tiny, tmp_path / "small.gguf").read_bytes(), "large.gguf": b"0"}
    with served("models", files) as (endpoint, asked):
        whole, lost, folder = call(("resolve", "owner/served"), ("resolve", "owner/served/lost.gguf"),
                                   ("resolve", name), HF_ENDPOINT=endpoint)
    assert "large.gguf" not in fetched(asked)
    assert lost.startswith("BadInput the repository has no such file") and "owner/name/FILE.gguf" in whole
    again = call(("resolve", name), ("local", name), ("size", name), HF_HUB_OFFLINE="1")
    assert again == [folder, folder, "its header"]
