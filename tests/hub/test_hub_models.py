"""Models of the hub from a server that talks as the hub does: what is fetched, and what is not."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from family_models import FAMILIES, make
from gguf_files import write_gguf

sys.path.insert(0, str(Path(__file__).parent))
from served_hub import served

MIXTURE = b'{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8}'
WEIGHTS = {"model.safetensors": b"0" * 1000, "pytorch_model.bin": b"0", "modeling.py": b"raise SystemExit"}
CALL = """
import json, sys
from phicli.errors import PhicliError
from phicli.doctor.reach import asks_hub, out_of_reach
from phicli.hub.models import local_tokenizer, resolve_model
from phicli.resources import size_of_model
for name, reference in json.loads(sys.argv[1]):
    call = {"resolve": resolve_model, "size": lambda r: size_of_model(r, fetch=True).source,
            "local": local_tokenizer, "asks": lambda r: asks_hub(r, online=False), "reach": out_of_reach}[name]
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


def test_transformers_offline_holds_too_where_the_hubs_own_variable_is_not_set(call):
    asked = ("resolve", "owner/none"), ("resolve", "owner/none/one.gguf")
    with served("models", {"config.json": MIXTURE}) as (endpoint, requests):
        said = call(*asked, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="", TRANSFORMERS_OFFLINE="1")
        assert not requests and all("TRANSFORMERS_OFFLINE keeps it from being fetched" in line for line in said)
        assert len(said) == len(asked)
        call(asked[0], HF_ENDPOINT=endpoint, TRANSFORMERS_OFFLINE="1")  # beside HF_HUB_OFFLINE=0
        assert requests


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


def test_a_gguf_file_is_judged_by_its_header_before_it_is_fetched(call, tiny, tmp_path):
    good = write_gguf(tiny, tmp_path / "small.gguf").read_bytes()
    bert = good.replace(b"\x04\0\0\0\0\0\0\0phi3", b"\x04\0\0\0\0\0\0\0bert", 1)
    experts = write_gguf(tiny, tmp_path / "experts.gguf", expert_count=8).read_bytes()
    cases = {"bert.gguf": (bert, "the architecture 'bert' is not read from GGUF"),
             "experts.gguf": (experts, "a mixture of experts (expert_count)"),
             "cut.gguf": (good[:5000], "damaged GGUF file: its header has no end"),
             "whole-bert.gguf": (bert, "the architecture 'bert' is not read from GGUF")}
    with served("models", {name: data for name, (data, _) in cases.items()}) as (endpoint, asked):
        told = call(*(("resolve", f"owner/served/{name}") for name in cases), HF_ENDPOINT=endpoint)
    for line, (_, said) in zip(told, cases.values(), strict=True):
        assert line.partition(" ")[2].startswith(said)
    parts = {f"{name} bytes=0-1048575" for name in cases}
    assert fetched(asked) == parts | {"whole-bert.gguf"}  # of a server that sends whole files only


def test_a_size_takes_a_gguf_file_s_header_and_factors_alone(call, tiny, tmp_path):
    """Of 3 MB of header, in growing parts, and of Llama 3's divisors, which are a tensor at the end."""
    model = write_gguf(make(next(one for one in FAMILIES if one.name == "Llama 3.2"), tmp_path / "model", tiny),
                       tmp_path / "llama.gguf").read_bytes()
    key, more = b"general.description", (3 << 20) + 25  # which makes the entry a multiple of 32, as data are aligned
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, more) + b"x" * more
    assert len(entry) % 32 == 0
    (pairs,) = struct.unpack_from("<Q", model, 16)
    long = model[:16] + struct.pack("<Q", pairs + 1) + entry + model[24:]
    with served("models", {"llama.gguf": long}) as (endpoint, asked):
        assert call(("size", "owner/served/llama.gguf"), HF_ENDPOINT=endpoint) == ["its header"]
    ranges = [tuple(map(int, name.partition("=")[2].split("-"))) for name in fetched(asked)]
    assert sorted(last + 1 - first for first, last in ranges) == [4 * 32, 1 << 20, 1 << 20, 2 << 20]


def test_the_hub_is_asked_without_fetching_for_what_is_not_here(call, tiny):
    files = {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()}
    named = ("owner/served", "owner/served/lost.gguf", "owner/none", "tiny", "microsoft/Phi-3.5-mini-instruct")
    with served("models", files) as (endpoint, asked):
        asks = call(*(("asks", name) for name in named), HF_ENDPOINT=endpoint)
        told = call(*(("reach", name) for name in named[:3]), HF_ENDPOINT=endpoint)
        assert not fetched(asked)
        call(("resolve", "owner/served"), HF_ENDPOINT=endpoint)
        here = call(("asks", "owner/served"), HF_HUB_OFFLINE="1")
    assert asks == ["True", "True", "True", "False", "False"] and here == ["False"]
    assert told[0] == "None" and told[1].startswith("BadInput the repository has no such file")
    assert told[2].startswith("BadInput no such folder, and no such model")
