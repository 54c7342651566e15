"""`phicli verify`: from an ONNX folder back to model and rows, and one byte that is another anywhere in it."""

import json
import os
import shutil

import pytest

from phicli.artifacts.stages import fingerprint


@pytest.fixture
def lab(finished_lab, tmp_path, monkeypatch):
    """A copy, which may be changed; manifests go on naming the model and the rows of the original, so these move."""
    copy = shutil.copytree(finished_lab, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def verified(cli, *arguments):
    done = cli("verify", *arguments, "--json")
    return done, json.loads(done.out) if done.out else []


def test_from_the_onnx_folder_back_to_model_and_rows(cli, finished_lab):
    done, found = verified(cli, finished_lab / "lab" / "onnx-ao", "--strict")
    assert done.code == 0, done.err
    chain = {(one["depth"], one["name"], one["step"]): one["fingerprint"] for one in found}
    assert chain[1, "base", "quantize"] == fingerprint(finished_lab / "lab" / "awq")
    assert chain[2, "model", ""] == fingerprint(finished_lab / "model")
    assert chain[1, "adapters/travel", "finetune"] == fingerprint(finished_lab / "lab" / "ft" / "travel")
    assert chain[2, "data", ""] == fingerprint(finished_lab / "rows.jsonl")
    assert {one["state"] for one in found} == {"whole"}


def test_one_byte_anywhere_is_named(cli, finished_lab):
    """In each file of a finished lab in turn, its inputs too: the one in the middle, or a blank that JSON ignores."""
    from phicli.steps.verify import verify

    files = [path for path in sorted(finished_lab.rglob("*")) if path.is_file()]
    assert {"phicli.json", "evaluation.json", "model.onnx", "rows.jsonl", "tokenizer.json", "phicli-model.json",
            "questions.jsonl", "travel.onnx_adapter", "adapter_model.safetensors"} <= {path.name for path in files}
    for file in files:
        whole = file.read_bytes()
        at = whole.index(b"\n") if file.suffix == ".json" and b"\n" in whole else len(whole) // 2
        try:
            file.write_bytes(whole[:at] + (b" " if whole[at:at + 1] == b"\n" else bytes([whole[at] ^ 1]))
                             + whole[at + 1:])
            named = {(one.place, wrong.split(" ")[0]) for one in verify(finished_lab / "lab") for wrong in one.wrong}
        finally:
            file.write_bytes(whole)
        assert any(file.is_relative_to(place) and file.as_posix().endswith(name) for place, name in named), file
    assert cli("verify", finished_lab / "lab").code == 0


def test_what_is_wrong_is_said_and_what_is_elsewhere_is_found_by_its_hash(cli, lab, finished_lab):
    """The lab alone, moved to where neither model nor rows are."""
    (finished_lab / "rows.jsonl").rename(finished_lab / "moved.jsonl")
    try:
        alone = lab / "lab"
        done = cli("verify", alone / "onnx-ao")
        assert done.code == 0 and "1 inputs are not on this machine" in done.err
        strict = cli("verify", alone / "onnx-ao", "--strict")
        assert strict.code == 4 and "--input" in strict.err
        assert cli("verify", alone / "onnx-ao", "--strict", "--input", lab / "rows.jsonl").code == 0
        shutil.rmtree(alone / "awq")
        shutil.rmtree(alone / "ft")
        found = verified(cli, alone / "onnx-ao")[1]  # by what its own manifest keeps of theirs
        assert [(one["depth"], one["name"], one["state"]) for one in found if one["depth"] < 2] == [
            (0, "onnx-ao", "whole"), (1, "base", "not here"), (1, "adapters/travel", "not here")]
        assert ("data", fingerprint(lab / "rows.jsonl")) in {(one["name"], one["fingerprint"]) for one in found}
    finally:
        (finished_lab / "moved.jsonl").rename(finished_lab / "rows.jsonl")
    (alone / "onnx-ao" / "extra.so").write_bytes(b"x")
    (alone / "onnx-ao" / "tokenizer.json").unlink()
    done, found = verified(cli, alone / "onnx-ao")
    assert done.code == 3 and found[0]["wrong"] == ["tokenizer.json is missing",
                                                    "extra.so is in it, and the step did not write it"]
    assert "tokenizer.json is missing" in done.err


def test_a_place_that_is_not_there(cli, tmp_path):
    done = cli("verify", tmp_path / "nope")
    assert done.code == 4 and "no such file or folder" in done.err and "phicli run" not in done.err
    assert "try: phicli run --root" in cli("verify", "--root", tmp_path / "nope").err


def test_a_stage_made_anew_is_told(cli, lab):
    manifest = json.loads((lab / "lab" / "awq" / "phicli.json").read_text())
    (lab / "lab" / "awq" / "config.json").write_text("{}")
    from phicli.artifacts.stages import Manifest, write_manifest

    write_manifest(lab / "lab" / "awq", Manifest("quantize", manifest["inputs"], manifest["settings"]))
    done, found = verified(cli, lab / "lab" / "onnx-ao")
    assert done.code == 3 and found[1]["wrong"] == [
        "awq was made anew, with other content, since this was made from it"]


def test_a_manifest_that_names_the_whole_disk(cli, tmp_path):
    from phicli.artifacts.stages import Manifest, write_manifest

    origins = {"model": {"path": "/", "files": {"a": "b"}}, "data": {"path": "/dev/zero"}, "fifo": {"path": "fifo"}}
    os.mkfifo(tmp_path / "fifo")
    write_manifest(tmp_path, Manifest("optimize", dict.fromkeys(origins, "ab"), {}, origins=origins))
    done, found = verified(cli, tmp_path)
    assert done.code == 3 and [one["state"] for one in found] == ["whole", "changed", "changed", "changed"]
    assert "many more than 1 files" in found[1]["wrong"][0] and "not a regular file" in found[2]["wrong"][0]


@pytest.mark.parametrize("content", ["{}", "[]", '{"check": 1}', '{"inputs": {"a": 1}, "origins": [], "check": "x"}'])
def test_strange_documents(cli, tmp_path, content):
    (tmp_path / "phicli.json").write_text(content)
    assert cli("verify", tmp_path).code == 3
    assert cli("verify", tmp_path / "none").code == 4
    (tmp_path / "empty").mkdir()
    assert cli("verify", tmp_path / "empty").code == 4
