"""`phicli run --workflow` and `--pass`: Olive's own files, run as stages, and what a stranger's file cannot do."""

import json
import time

import pytest

from phicli.errors import PhicliError
from phicli.workflow.described import parse_pass, read_workflow

OLIVE = {
    "input_model": {"type": "HfModel", "model_path": "tiny", "task": "text-generation"},
    "systems": {"local_system": {"type": "LocalSystem", "accelerators": [
        {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}},
    "passes": {"q": {"type": "Rtn", "bits": 4, "group_size": 32}, "b": {"type": "ModelBuilder", "precision": "int4"}},
    "host": "local_system", "target": "local_system", "cache_dir": "cache", "output_dir": "mine",
}


def test_a_workflow_of_olives_then_passes_by_name(cli, tmp_path, monkeypatch):
    """Two passes in JSON make a model that chats; it is up to date then; one more pass takes that model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab.json").write_text(json.dumps(OLIVE))
    done = cli("run", "--workflow", "lab.json")
    assert done.code == 0 and done.out == "mine\n", done.err
    assert not (tmp_path / "cache").exists() and not list(tmp_path.glob(".mine*"))
    assert "chat --path mine" in done.err
    answer = cli("chat", "--path", "mine", "--prompt", "Hello", "--max-new-tokens", "3")
    assert answer.code == 0 and answer.out.strip()
    assert "mine is up to date" in cli("run", "--workflow", "lab.json").err
    (tmp_path / "more.yaml").write_text("input_model: {type: ONNXModel, model_path: mine}\n"
                                        "passes: {same: {type: OnnxIODataTypeConverter, source_dtype: 1}}\n")
    more = cli("run", "--workflow", "more.yaml", "--root", "other", "--json")
    assert more.code == 0, more.err
    made = json.loads(more.out)
    assert made["path"] == "other/passes" and made["inputs"].keys() == {"model"}
    assert made["settings"]["passes"][0]["name"] == "onnxiodatatypeconverter"
    assert made["origins"]["model"]["made"]["step"] == "workflow"
    assert "model.onnx" in made["files"]


@pytest.mark.parametrize(("change", "named"), [
    ({"passes": {"q": {"type": "Rtn", "user_script": "evil.py"}}}, "user_script"),
    ({"data_configs": [{"name": "a", "type": "HuggingfaceContainer", "script_dir": "."}]}, "script_dir"),
    ({"data_configs": [{"name": "a", "load_dataset_config": {"trust_remote_code": 1}}]}, "trust_remote_code"),
    ({"input_model": {"type": "HfModel", "model_path": "tiny", "load_kwargs": {}}}, "load_kwargs"),
    ({"input_model": {"type": "PyTorchModel", "model_path": "tiny"}}, "pytorchmodel"),
    ({"input_model": {"type": "HfModel", "config": {"model_path": "tiny", "model_script": "x"}}}, "model_script"),
    ({"input_model": {"model_path": 4}}, "names no model"),
    ({"systems": {"a": {"type": "Docker", "dockerfile": "x"}}}, "dockerfile"),
    ({"systems": {"a": {"type": "PythonEnvironmentSystem", "python_environment_path": "/x"}}}, "type"),
    ({"passes": {"b": {"type": "ModelBuilder", "extra_options": {"hf_remote": "true"}}}}, "hf_remote"),
    ({"passes": {"q": [{"type": "Rtn", "bits": 4}, {"type": "Rtn", "bits": 8}]}}, "several ways"),
    ({"passes": {"q": {"type": 4}}}, "Olive does not take"), ({"passes": 3}, "Olive does not take"),
    ({"engine": {"search_strategy": True}}, "search_strategy"), ({"evaluators": {}}, "evaluators"),
    ({"surprise": 1}, "surprise"), ({"engine": [1]}, "Olive does not take"),
])
def test_what_a_stranger_may_not(tmp_path, change, named):
    (tmp_path / "lab.json").write_text(json.dumps(OLIVE | change))
    with pytest.raises(PhicliError) as refused:
        read_workflow(tmp_path / "lab.json")
    assert named in refused.value.message and refused.value.exit_code == 3


@pytest.mark.parametrize("text", [
    "a: &a [1, 1]\npasses: *a\n", "!!python/object/apply:os.system ['true']", "passes: {}\npasses: {}\n", "[" * 5000,
    "- a\n", "a: b: c", "\0", "x" * 70000, "&a " * 20000, "? " * 30000])
def test_yaml_that_would_be_more_than_it_is(tmp_path, text):
    (tmp_path / "lab.yaml").write_text(text)
    begun = time.monotonic()
    with pytest.raises(PhicliError) as refused:
        read_workflow(tmp_path / "lab.yaml")
    assert refused.value.exit_code == 3 and time.monotonic() - begun < 5


def test_passes_by_name(cli, tmp_path):
    assert parse_pass("Rtn bits=4 sym=true names=[a,b]").settings == {"bits": 4, "sym": True, "names": ["a", "b"]}
    assert parse_pass("KQuant").settings == {}
    for text in ("", "Rtn bits", "a.b c=1", "Rtn 4=4", "Rtn a=[", "Rtn user_script=x.py"):
        with pytest.raises(PhicliError):
            parse_pass(text)
    root = ("--root", tmp_path / "root", "--model", "tiny")
    unknown = cli("run", *root, "--pass", "NoSuchPass")
    assert unknown.code == 3 and "NoSuchPass cannot be run" in unknown.err
    assert cli("run", *root, "--output", tmp_path / "x").code == 2
    assert cli("run", *root, "--pass", "Rtn", "--from", "chat").code == 2
    assert cli("run", *root, "--workflow", tmp_path / "none.yaml").code == 3
    assert not (tmp_path / "root" / "passes").exists()
