"""What quantize calibrates on beside a text: the user's rows, and what the model writes itself."""

import json

import pytest
import torch
from lab_rows import calibration

from phicli import quantize
from phicli.artifacts.stages import fingerprint
from phicli.quantization.calibration import calibration_tokens, own_row_tokens
from phicli.quantization.generated import generated_tokens, opening
from phicli.steps.verify import verify
from phicli.text import TextCodec

ANSWER = "Zanzibar has spices, and quiet beaches in the north."


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Where to, number {i}?", "response": ANSWER}) + "\n"
                            for i in range(40)))
    return path


def test_the_model_begins_with_a_user_and_writes_what_it_learnt(tiny):
    codec = TextCodec(tiny)
    found = generated_tokens(tiny, 3, 96, "cpu", seed=1)
    assert found.shape == (3, 96) and found.dtype == torch.long
    begin = opening(codec)
    assert codec.tokenizer.decode(begin, skip_special_tokens=False).rstrip() == "<|user|>"
    assert (found[:, : len(begin)] == torch.tensor(begin)).all()
    assert len({tuple(row.tolist()) for row in found}) == 3
    words = {word for row in found for word in codec.decode(row.tolist()).split() if len(word) > 3}
    known = codec.decode(calibration_tokens(tiny, calibration(None, 128, 96)).flatten().tolist())
    assert sum(word in known for word in words) > len(words) / 4  # its own language, not noise


def test_the_same_seed_writes_the_same_however_many_rows_fit(tiny, monkeypatch):
    first = generated_tokens(tiny, 4, 40, "cpu", seed=3)
    assert torch.equal(first, generated_tokens(tiny, 4, 40, "cpu", seed=3))
    assert not torch.equal(first, generated_tokens(tiny, 4, 40, "cpu", seed=4))
    assert generated_tokens(tiny, 0, 40, "cpu").shape == (0, 40)
    monkeypatch.setattr("phicli.quantization.generated.available_memory", lambda device: 1_000_000)
    assert generated_tokens(tiny, 4, 40, "cpu").shape == (0, 40)  # the model does not fit


def test_rows_are_laid_out_as_they_are_trained_on(tiny, rows):
    found = own_row_tokens(tiny, [str(rows)], calibration(None, 8, 64))
    assert found.shape == (8, 64)
    text = TextCodec(tiny).tokenizer.decode(found.flatten().tolist(), skip_special_tokens=False)
    assert ANSWER in text and "<|assistant|>" in text
    assert own_row_tokens(tiny, [str(rows)], calibration(None, 8, 100_000)).shape == (0, 100_000)
    assert own_row_tokens(tiny, [], calibration(None, 8, 64)).shape == (0, 64)


def test_quantize_tells_what_it_calibrated_on(rows, tmp_path):
    given = {"samples": 4, "seq_len": 64, "generated": 2, "own_rows": (str(rows),), "rounding": "nearest",
             "device": "cpu"}
    done = quantize("tiny", root=str(tmp_path / "root"), **given)
    assert done.manifest.quality["calibration_sequences"] == {"text": 4, "own_rows": 4, "generated": 2}
    assert done.manifest.inputs["own_rows"] == fingerprint(rows)
    assert {one.name: one.state for one in verify(done.folder)}["own_rows"] == "whole"
    rows.write_text(rows.read_text().replace("e", "E", 1))
    assert {one.name: one.wrong for one in verify(done.folder)}["own_rows"] == [
        "own.jsonl has other content than it had"]
    again = quantize("tiny", root=str(tmp_path / "root"), **given)
    assert again.manifest.created == done.manifest.created  # other rows are no reason to make it anew


def test_the_lab_mixes_in_given_data_once(rows, tmp_path):
    from phicli.config.layers import Settings
    from phicli.progress import SILENT
    from phicli.steps.lab import run_lab

    def sequences(data):
        given = {"model": "tiny", "root": str(tmp_path / "lab"), "samples": 4, "seq_len": 64, "rounding": "nearest"}
        steps = list(run_lab(Settings(), given | ({"data": data} if data else {}), None, SILENT, last="quantize"))
        manifest = json.loads((tmp_path / "lab" / "awq" / "phicli.json").read_text())
        return steps[-1].state, manifest["quality"]["calibration_sequences"]["own_rows"]

    assert sequences((str(rows),)) == ("made", 4)
    assert sequences(None) == ("up to date", 4)  # other data do not make the model of all adapters anew
