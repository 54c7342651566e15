"""Models, adapters, rows and settings that are not what they say: refused by the first command, in words."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from random_models import random_model
from safetensors.numpy import load_file, save_file

import phicli

QUANTIZE = ("--device", "cpu", "--samples", "2", "--seq-len", "16", "--rounding", "nearest")
PARENT = str(Path(phicli.__file__).parents[1])


@pytest.fixture
def model(tiny, tmp_path):
    """A copy of the built-in model that may be changed."""
    return shutil.copytree(tiny, tmp_path / "model")


@pytest.fixture
def first(cli, tmp_path):
    """first("quantize", folder) -> the outcome of a first command on a model."""
    def run(step: str, folder: Path):
        more = {"quantize": ("--model", folder, *QUANTIZE), "optimize": ("--base", folder, "--device", "cpu"),
                "finetune": ("--base", folder, "--max-steps", 1, "--device", "cpu", "--data", rows(tmp_path),
                             "--eval-split", 0)}[step]
        return cli(step, "--root", tmp_path / "root", *more)

    return run


def rows(folder: Path, content: str = '{"prompt": "Where is Kyoto?", "response": "In Japan."}\n' * 4) -> Path:
    (folder / "rows.jsonl").write_text(content)
    return folder / "rows.jsonl"


def change(path: Path, **values) -> None:
    """Set values of a JSON document; None takes one out."""
    document = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def refused(outcome, *words: str) -> None:
    assert outcome.code == 3 and all(word in outcome.err for word in ("error: ", *words)), outcome.err
    assert "Traceback" not in outcome.err and outcome.out == ""


@pytest.mark.parametrize("step", ["quantize", "finetune", "optimize"])
@pytest.mark.parametrize(("values", "word"), [
    ({"num_hidden_layers": 200_000}, "200000 layers"), ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"num_hidden_layers": 3}, "3 layers"), ({"hidden_size": -256}, "hidden_size is -256"),
    ({"vocab_size": 1 << 40}, "vocab_size is 1099511627776"), ({"intermediate_size": 8}, "by config.json"),
    ({"num_attention_heads": 1.5}, "num_attention_heads is 1.5"), ({"dtype": "cuda"}, "dtype is 'cuda'"),
])
def test_sizes(first, model, step, values, word):
    """config.json with sizes that are not the weights' (200,000 or 0 layers, negative, huge): exit code 3 at once,
    before anything is allocated."""
    change(model / "config.json", **values)
    refused(first(step, model), word, str(model))


@pytest.mark.parametrize("step", ["quantize", "finetune", "optimize"])
@pytest.mark.parametrize(("values", "word"), [
    ({"vision_config": {"depth": 2}}, "several parts"), ({"text_config": {"hidden_size": 256}}, "several parts"),
    ({"architectures": ["BertForMaskedLM"]}, "no causal language model"), ({"architectures": None}, "architectures"),
    ({"model_type": "foo9"}, "foo9"), ({"quantization_config": {"quant_method": "awq", "bits": 0}}, "quantization"),
    ({"rope_parameters": {"rope_theta": "x"}}, "cannot"),
])
def test_other_families(first, model, step, values, word):
    """A vision wrapper, an encoder, an unknown or half a config.json: the first command says which and what to take,
    exit code 3."""
    change(model / "config.json", **values)
    refused(first(step, model), word, str(model))


@pytest.mark.parametrize("step", ["quantize", "finetune", "optimize"])
@pytest.mark.parametrize("change_name", ["prefix", "no head"])
def test_weights_under_other_names(first, model, step, change_name):
    """Weights under a wrapper's names, or without the output projection: exit code 3 that names one, never a model
    with random weights."""
    tensors = load_bytes(model / "model.safetensors")
    kept = {f"base_model.model.{name}": entry for name, entry in tensors.items()} if change_name == "prefix" else {
        name: entry for name, entry in tensors.items() if name != "lm_head.weight"}
    write_bytes(model / "model.safetensors", kept)
    refused(first(step, model), "lm_head.weight" if change_name == "no head" else "model.embed_tokens.weight")


@pytest.mark.parametrize("step", ["quantize", "finetune"])
def test_tokens_without_embedding(first, model, step):
    """A tokenizer with more tokens than the model has embeddings: exit code 3 with the token, no IndexError."""
    document = json.loads((model / "tokenizer.json").read_text())
    document["model"]["vocab"]["kyoto-in-spring"] = 4096
    (model / "tokenizer.json").write_text(json.dumps(document))
    refused(first(step, model), "4096", "embeddings")


@pytest.mark.parametrize("algorithm", ["gptq", "rtn", "kquant", "quarot", "awq"])
def test_group_sizes(cli, tmp_path, tiny, algorithm):
    """A given group size that does not divide all widths: exit code 3 with the one that does, which is taken and said
    where none is given, by every algorithm."""
    random_model(tmp_path / "model", "llama", vocab_size=4096, hidden_size=192, intermediate_size=320, head_dim=48)
    shutil.copy(tiny / "tokenizer.json", tmp_path / "model")
    arguments = ["quantize", "--model", tmp_path / "model", "--root", tmp_path / "root", "-a", algorithm, *QUANTIZE]
    refused(cli(*arguments, "--group-size", 128), "--group-size 128 does not divide", "try: --group-size 64")
    found = cli(*arguments)
    assert found.code == 0 and found.err.count("group size 64: 128 does not divide") == 1, found.err
    folder = tmp_path / "root" / algorithm
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["group_size"] == 64
    assert json.loads((folder / "phicli.json").read_text())["settings"]["group_size"] == 64
    assert "up to date" in cli(*arguments, "--group-size", 64).err


def test_some_linears_stay(cli, tmp_path, tiny):
    """Widths that no group size divides, some only: AWQ leaves those in float and names them, Olive's refuse."""
    random_model(tmp_path / "model", "llama", vocab_size=4096, intermediate_size=200)  # widths 128 and 200
    shutil.copy(tiny / "tokenizer.json", tmp_path / "model")
    arguments = ["quantize", "--model", tmp_path / "model", "--root", tmp_path / "root", *QUANTIZE]
    refused(cli(*arguments, "-a", "rtn"), "does not divide", "down_proj has 200 inputs", "try: --algorithm awq")
    found = cli(*arguments)
    assert found.code == 0 and "2 of 14 linears stay in float" in found.err and "widths: down_proj" in found.err


def load_bytes(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """The tensors of a safetensors file, whatever their type."""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], content[start + entry["data_offsets"][0] :][: entry["data_offsets"][
        1] - entry["data_offsets"][0]]) for name, entry in header.items()}


def write_bytes(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    write_header(path, json.dumps(header), b"".join(data for _, _, data in tensors.values()))


def write_header(path: Path, header: str, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)


A, B = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight", "x.layers.0.mlp.down_proj.lora_B.weight"


@pytest.fixture
def adapter(tmp_path):
    """A good adapter for the built-in model."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    at = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    save_file({f"{at}A.weight": np.ones((4, 768), np.float32), f"{at}B.weight": np.ones((256, 4), np.float32)},
              folder / "adapter_model.safetensors")
    return folder


def _tensors(folder, **more):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    extra = {key: tensors[next(n for n in tensors if f"_{side}." in n)] for key, side in more.items()}
    save_file({**tensors, **extra}, path)


def overlapping(folder):
    path = folder / "adapter_model.safetensors"
    header = json.loads(path.read_bytes()[8:][: struct.unpack("<Q", path.read_bytes()[:8])[0]])
    for entry in header.values():
        entry["data_offsets"] = [0, entry["data_offsets"][1] - entry["data_offsets"][0]]
    write_header(path, json.dumps(header), bytes(max(e["data_offsets"][1] for e in header.values())))


def with_hole(folder):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}
    write_header(folder / "adapter_model.safetensors", json.dumps({A: entry}), bytes(12))


def doubled_key(folder):
    entry = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    write_header(folder / "adapter_model.safetensors", f'{{"{A}": {entry}, "{A}": {entry}}}', bytes(4))


def not_a_number(folder):
    path = folder / "adapter_model.safetensors"
    save_file({name: np.full_like(tensor, np.nan) for name, tensor in load_file(path).items()}, path)


SPOILED = {
    "overlaps": overlapping,
    "after a hole": with_hole,
    "is there twice": doubled_key,
    "not finite": not_a_number,
    "the same matrix": lambda folder: _tensors(folder, **{"model.layers.0.mlp.down_proj.lora_A.weight": "A"}),
    "are the same": lambda folder: _tensors(folder, **{A.replace(".weight", ".default.weight"): "A"}),
    "says 8": lambda folder: change(folder / "adapter_config.json", r=8),
    "says 2": lambda folder: change(folder / "adapter_config.json", rank_pattern={"down_proj": 2}),
    "no number": lambda folder: change(folder / "adapter_config.json", alpha_pattern={"down_proj": "x"}),
    "no JSON": lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": NaN}'),
    "another model": lambda folder: _tensors(folder, **{A.replace("down", "up"): "A",
                                                        A.replace("down", "up").replace("_A", "_B"): "B"}),
}


@pytest.mark.parametrize("words", SPOILED)
def test_adapters(cli, tiny, tmp_path, adapter, words):
    """An adapter whose tensors overlap, have holes or two names, hold NaN, or are not what its settings say: refused
    by name before anything is built."""
    SPOILED[words](adapter)
    refused(cli("optimize", "--base", tiny, "--root", tmp_path / "root", "--adapter", f"x={adapter}"), words,
            str(adapter))
    assert not (tmp_path / "root").exists()


def test_bfloat16_adapter(cli, tiny, tmp_path, adapter):
    """An adapter saved in bfloat16: taken as any other."""
    path = adapter / "adapter_model.safetensors"
    halves = {name: ("BF16", shape, np.frombuffer(data, np.uint16)[1::2].tobytes())
              for name, (_, shape, data) in load_bytes(path).items()}
    write_bytes(path, halves)
    found = cli("optimize", "--base", tiny, "--root", tmp_path / "root", "--adapter", f"x={adapter}", "--device", "cpu")
    assert found.code == 0, found.err


MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json",
               "tokenizer_config.json")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs in folders")
@pytest.mark.parametrize("kind", ["FIFO", "endless"])
@pytest.mark.parametrize("name", [*MODEL_FILES, "data", "calibration", "plan", "settings",
                                  "adapter_config.json", "adapter_model.safetensors"])
def test_no_regular_files(model, adapter, tmp_path, kind, name):
    """A FIFO, or a link to /dev/zero, as any file that phicli reads: refused within seconds, exit code 3."""
    commands = {
        "data": ("inspect", tmp_path / name, "--model", "tiny"),
        "calibration": ("quantize", "--model", model, "--calibration", tmp_path / name),
        "plan": ("quantize", "--model", model, "--plan", tmp_path / name),
        "settings": ("--config", tmp_path / name, "config"),
    }
    place = model / name if name in MODEL_FILES else adapter / name if name.startswith("adapter") else tmp_path / name
    place.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    default = ("optimize", "--base", model, "--adapter", f"x={adapter}", "--root", tmp_path / "root")
    found = command(*commands.get(name, default))
    assert found.returncode == 3 and b"Traceback" not in found.stderr, found.stderr


def command(*argv, given: bytes = b"") -> subprocess.CompletedProcess:
    """A command in a process of 3 GB, which is to end within 20 seconds."""
    limited = ("import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2); "
               "from phicli.cli.main import main; sys.exit(main(sys.argv[1:]))")
    return subprocess.run([sys.executable, "-c", limited, *map(str, argv)], capture_output=True, timeout=20,
                          input=given, env={**os.environ, "PYTHONPATH": PARENT})


def test_long_prompt():
    """200 MB on chat's stdin: exit code 3 after the first megabyte."""
    found = command("chat", "--model", "tiny", given=b"word " * (40 << 20))
    assert found.returncode == 3 and b"more than 1 MB" in found.stderr


@pytest.mark.parametrize(("line", "words"), [
    ('{"a": 1, ' + ", ".join(f'"f{i}": 0' for i in range(90_000)) + ', "a": 2}', "stands there twice"),
    ('{"prompt": NaN, "response": "x"}', "NaN is no JSON"), ('{"prompt": -Infinity}', "-Infinity is no JSON"),
    ('{"prompt": 1e999}', "too large a number"), ('{"prompt": ' + "9" * 5000 + "}", "4300 digits"),
    ('{"a":' * 50_000 + "1" + "}" * 50_000, "recursion"),
])
def test_rows(cli, tmp_path, line, words):
    """Rows with a doubled key among 90,000, NaN, 1e999, 5,000 digits or 50,000 levels: exit code 3 within a second,
    with file and line."""
    begun = time.monotonic()
    found = cli("finetune", "--base", "tiny", "--data", rows(tmp_path, line + "\n"), "--root", tmp_path / "root")
    refused(found, "rows.jsonl:1", words)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(("text", "words"), [
    ("a" + ".a" * 200_000 + " = 1", "65,536 bytes"), ("a" + ".a" * 30_000 + " = 1", "a key of more than"),
    ("[" + "a." * 30_000 + "a]", "a key of more than"), ("seed = " + "9" * 5000, "4300 digits"),
    ("seed = 9999999999999", "at most 2147483647"), ("chat.temperature = inf", "finite"),
    ("finetune.learning_rate = nan", "finite"), ("azure.timeout = 1e999", "finite"),
    ("model = " + "[" * 20_000, "TOML"), ("seed = " + "{a = " * 200 + "1" + "}" * 200, "unknown setting"),
])
def test_settings(cli, tmp_path, text, words):
    """phicli.toml with keys of 30,000 parts, 5,000 digits, nan, inf or deep nesting: exit code 3 within seconds."""
    (tmp_path / "phicli.toml").write_text(text)
    begun = time.monotonic()
    refused(cli("--config", tmp_path / "phicli.toml", "config"), words, "phicli.toml")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(("flag", "value"), [("--learning-rate", "nan"), ("--lora-alpha", "inf"),
                                             ("--eval-split", "-inf"), ("--seed", "9" * 30)])
def test_flags(cli, tmp_path, flag, value):
    """nan, inf and numbers of 30 digits for a setting on the command line: exit code 2."""
    found = cli("finetune", "--base", "tiny", "--data", rows(tmp_path), "--root", tmp_path / "root", flag, value)
    assert found.code == 2 and flag in found.err


@pytest.mark.parametrize(("name", "value"), [("PHICLI_CHAT_TEMPERATURE", "inf"), ("PHICLI_SEED", "9" * 5000),
                                             ("PHICLI_FINETUNE_LEARNING_RATE", "nan")])
def test_environment(cli, monkeypatch, name, value):
    """The same in a PHICLI_ variable: exit code 3 that names it."""
    monkeypatch.setenv(name, value)
    refused(cli("config"), name)


def test_doubled_tensor(first, model):
    """A tensor that stands in two files of a model: exit code 3, whichever the index names."""
    shutil.copy(model / "model.safetensors", model / "more.safetensors")
    refused(first("quantize", model), "stands in two files")
