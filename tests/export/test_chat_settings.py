"""What optimize takes over of a model's own words on how its answers are drawn and where they end."""

import json

import pytest
from onnx_checkpoints import nearest_awq

from phicli import optimize
from phicli.errors import BadInput
from phicli.inference.sampling import Sampling
from phicli.inference.session import Session

ENDS = "<|endoftext|>", "<|end|>"


class Notes:
    """A Progress that keeps what is said."""

    def __init__(self):
        from phicli.progress import SILENT

        self.said, self.task = [], SILENT.task

    def note(self, text):
        self.said.append(text)

    warn = note


@pytest.fixture
def optimized_with(tiny, tmp_path):
    """optimized_with(settings or None) -> a session of the built-in model with that generation_config.json, notes."""

    def run(settings):
        model = nearest_awq(tiny, tmp_path / "model")
        (model / "generation_config.json").unlink()
        if settings is not None:
            text = settings if isinstance(settings, str) else json.dumps(settings)
            (model / "generation_config.json").write_text(text)
        notes = Notes()
        folder = optimize(root=tmp_path, base=str(model), device="cpu", progress=notes).folder
        return Session(folder), notes.said

    return run


@pytest.mark.parametrize(("named", "ends", "added"), [
    (None, {0, 4}, ["<|end|>"]), ([4, 2, 0], {4, 2, 0}, []), (4, {4, 0}, ["<|endoftext|>"]),
    ([2], {2, 0, 4}, ["<|endoftext|>", "<|end|>"]), ([4, 99999, "x", True, -1], {4, 0}, ["<|endoftext|>"]),
    ([], {0, 4}, [*ENDS]), ([99999], {0, 4}, [*ENDS]),
])
def test_all_tokens_that_end_an_answer_are_there_and_what_was_added_is_said(optimized_with, named, ends, added):
    session, said = optimized_with(None if named is None else {"eos_token_id": named})
    assert session.end_ids == ends
    assert [end for end in ENDS if any(f"answers end at {end}," in note for note in said)] == added


@pytest.mark.parametrize(("settings", "asked"), [
    (None, Sampling(0.7)),
    ({"temperature": None, "top_k": None}, Sampling(0.7)),
    ({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
     Sampling(0.7, 0.8, 20, repetition_penalty=1.05)),
    ({"do_sample": True, "top_k": 64, "top_p": 0.95}, Sampling(1.0, 0.95, 64)),
    ({"temperature": 0.6}, Sampling(0.6, 1.0, 50)),
    ({"temperature": 1.0}, Sampling(1.0, 1.0, 50)),
    ({"repetition_penalty": 1.2}, Sampling(0.7, repetition_penalty=1.2)),
    ({"do_sample": False}, Sampling(0.0, 1.0)),
])
def test_how_the_model_asks_to_be_sampled(optimized_with, settings, asked):
    assert optimized_with(settings)[0].sampling == asked


def test_values_that_cannot_be_are_named_and_left_out(optimized_with):
    session, said = optimized_with({"do_sample": True, "temperature": "hot", "top_p": 7, "top_k": -7,
                                    "repetition_penalty": 0, "eos_token_id": [4, 2, 0]})
    assert session.sampling == Sampling(1.0, 1.0)
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        assert any(f"generation_config.json: {name}" in text and text.endswith("left out") for text in said)


@pytest.mark.parametrize("settings", ['{"eos_token_id":', "[1]"])
def test_damaged(optimized_with, settings):
    with pytest.raises(BadInput):
        optimized_with(settings)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": "all"}, {"do_sample": "yes"},
                                   {"repetition_penalty": 0}])
def test_a_folder_with_search_settings_that_cannot_be_is_refused(optimized_with, wrong):
    session, _ = optimized_with(None)
    path = session.folder / "genai_config.json"
    document = json.loads(path.read_text())
    document["search"] |= wrong
    path.write_text(json.dumps(document))
    with pytest.raises(BadInput):
        Session(session.folder)
