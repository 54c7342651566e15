"""Model folders of strangers in chat: settings, graphs and weights that are more than a text model needs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest

from phicli.errors import BadInput
from phicli.export.genai_config import read_config
from phicli.inference.session import Session

CODE = """#include <stdio.h>
__attribute__((constructor)) static void run(void) { fclose(fopen("%s", "w")); }
"""


@pytest.fixture
def model(optimized, tmp_path) -> Path:
    """A root's model folder, to be made hostile."""
    return shutil.copytree(optimized / "onnx-ao", tmp_path / "root" / "onnx-ao")


def rewrite(model: Path, change) -> None:
    path = model / "genai_config.json"
    document = json.loads(path.read_text())
    change(document, document["model"]["decoder"])
    path.write_text(json.dumps(document))


def in_session(document, decoder):
    decoder["session_options"]["custom_ops_library"] = "evil.so"


def doubled(document, decoder):
    """Python keeps the last of two keys, genai reads both."""
    decoder["session_options "] = {"custom_ops_library": "evil.so"}


def in_encoder(kind):
    def change(document, decoder):
        document["model"]["type"] = kind
        document["model"]["encoder"] = {"filename": "model.onnx", "session_options": {"custom_ops_library": "evil.so"}}
    return change


def in_pipeline(document, decoder):
    document["model"]["type"] = "decoder-pipeline"
    decoder["pipeline"] = [{"m": {"filename": "model.onnx", "inputs": ["input_ids"], "outputs": ["logits"],
                                  "session_options": {"custom_ops_library": "evil.so"}}}]


WAYS = {"session options": in_session, "session options twice": doubled, "whisper's encoder": in_encoder("whisper"),
        "marian's encoder": in_encoder("marian-ssru"), "an encoder beside": in_encoder("phi3"), "pipeline": in_pipeline}


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("way", WAYS)
def test_a_library_in_the_models_folder(cli, model, monkeypatch, way):
    """A model's folder with a library of its own, named in genai_config.json in every way that genai reads: refused
    with the key's name, exit code 3, and nothing of it runs."""
    ran = model.parent / "ran"
    (model.parent / "evil.c").write_text(CODE % ran)
    subprocess.run(["cc", "-shared", "-fPIC", model.parent / "evil.c", "-o", model / "evil.so"], check=True)
    rewrite(model, WAYS[way])
    path = model / "genai_config.json"
    path.write_text(path.read_text().replace('"session_options "', '"session_options"'))
    monkeypatch.chdir(model)  # genai takes libraries from there too
    done = cli("chat", "--root", model.parent, "--prompt", "hello")
    assert done.code == 3 and not ran.exists()
    assert "'session_options' is there twice" in done.err if way == "session options twice" else "'model." in done.err


@pytest.mark.parametrize(("key", "change"), [
    ("enable_profiling", lambda document, decoder: decoder["session_options"].update(enable_profiling="../../p")),
    ("run_options", lambda document, decoder: decoder.update(run_options={"enable_profiling": "p"})),
    ("shared_initializers", lambda document, decoder: decoder.update(shared_initializers=[{"data_file": "/etc/x"}])),
    ("intra_op_num_threads",
     lambda document, decoder: decoder["session_options"].update(intra_op_num_threads=20000)),
    ("provider_options.QNN", lambda document, decoder: decoder["session_options"].update(
        provider_options=[{"QNN": {"backend_path": "evil.so"}}])),
    ("filename", lambda document, decoder: decoder.update(filename="../model.onnx")),
    ("filename", lambda document, decoder: decoder.update(filename="/etc/passwd")),
    ("past_key_names", lambda document, decoder: decoder["inputs"].update(past_key_names="%s%n%s")),
    ("type", lambda document, decoder: document["model"].update(type="whisper")),
    ("context_length", lambda document, decoder: document["model"].update(context_length=10**30)),
    ("context_length", lambda document, decoder: document["model"].update(context_length=-1)),
    ("context_length", lambda document, decoder: document["model"].update(context_length="2048")),
    ("context_length", lambda document, decoder: document["model"].update(context_length=True)),
    ("vocab_size", lambda document, decoder: document["model"].update(vocab_size=4097)),
    ("vocab_size", lambda document, decoder: document["model"].update(vocab_size=4095)),
    ("eos_token_id", lambda document, decoder: document["model"].update(eos_token_id=[0, 4096])),
    ("eos_token_id", lambda document, decoder: document["model"].update(eos_token_id=-5)),
    ("eos_token_id", lambda document, decoder: document["model"].update(eos_token_id=[])),
    ("head dimension", lambda document, decoder: decoder.update(head_size=128)),
    ("num_key_value_heads", lambda document, decoder: decoder.update(num_key_value_heads=4096)),
    ("num_hidden_layers", lambda document, decoder: decoder.update(num_hidden_layers=10**9)),
    ("repetition_penalty", lambda document, decoder: document["search"].update(repetition_penalty="1")),
])
def test_a_setting_that_no_text_model_has(cli, model, key, change):
    """A setting in genai_config.json that writes files, takes all memory or means something else: exit code 3 and the
    setting's name, nothing written."""
    rewrite(model, change)
    before = sorted(p for p in model.parent.parent.rglob("*") if p.is_file())
    done = cli("chat", "--root", model.parent, "--prompt", "hello")
    assert done.code == 3 and key in done.err and "Traceback" not in done.err
    assert sorted(p for p in model.parent.parent.rglob("*") if p.is_file()) == before


def test_a_setting_that_is_not_known(model):
    """A setting in genai_config.json that phicli does not know, and keys of null: left out, the model runs as it
    does without."""
    plain = read_config(model)

    def change(document, decoder):
        document["model"]["pad_token_id"] = 10**9
        document["model"]["sep_token_id"] = None
        decoder["session_options"].update({"session.new_option": "../x", "log_severity_level": 0})
        document["engine"] = {"dynamic_batching": {}}

    rewrite(model, change)
    assert read_config(model) == plain
    assert Session(model).logits([5, 6, 7]).shape == (3, 4096)


def external(model: Path, name: str, file: str = "model.onnx.data") -> None:
    """Let the graph's weights lie in a file of another name."""
    graph = onnx.load(str(model / "model.onnx"), load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    onnx.save(graph, str(model / "model.onnx"))


@pytest.mark.parametrize("name", ["../outside", "{out}/outside", "sub/../../outside", "*/_ORT_MEM_ADDR_/*", ""])
def test_weights_outside_the_folder(model, name):
    """A graph whose weights lie outside the model's folder, or at an address in memory: exit code 3 with the name."""
    shutil.copy(model / "model.onnx.data", model.parent / "outside")
    (model / "sub").mkdir()
    external(model, name.replace("{out}", str(model.parent)))
    with pytest.raises(BadInput, match="weights outside the model's folder"):
        Session(model)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def zero(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("name", ["genai_config.json", "model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("put", [fifo, zero])
def test_no_regular_file_in_the_folder(model, put, name):
    """A FIFO or a link to /dev/zero in place of settings, graph or weights: exit code 3 at once."""
    put(model / name)
    with pytest.raises(BadInput, match="not a regular file"):
        Session(model)


def test_files_that_are_links_to_another_place(model, tmp_path):
    """A model whose files are links to other folders, as download caches have them: it runs."""
    want = Session(model).logits([5, 6, 7])
    for number, name in enumerate(["model.onnx", "model.onnx.data", "genai_config.json"]):
        (tmp_path / f"disk{number}").mkdir()
        shutil.move(model / name, tmp_path / f"disk{number}" / "blob")
        (model / name).symlink_to(tmp_path / f"disk{number}" / "blob")
    assert (Session(model).logits([5, 6, 7]) == want).all()
