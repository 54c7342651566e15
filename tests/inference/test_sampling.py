"""How tokens are drawn: transformers is the reference, and says what its defaults are."""

import dataclasses

import numpy as np
import pytest
import torch

from phicli.config import ChatConfig
from phicli.errors import UsageError
from phicli.inference.conversation import Conversation
from phicli.inference.sampling import Sampling
from phicli.inference.session import Session


@pytest.fixture(scope="module")
def session(optimized):
    return Session(optimized / "onnx-ao")


def test_min_p_leaves_the_tokens_that_transformers_leaves():
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
    )

    rng = np.random.default_rng(1)
    for _ in range(50):
        logits = (4 * rng.standard_normal((1, 1, 300))).astype(np.float32)
        tokens, temperature = rng.integers(0, 300, 40), float(rng.uniform(0.2, 3))
        min_p, penalty = float(rng.uniform(0.01, 0.9)), float(rng.uniform(0.8, 2))
        kept = Sampling(temperature, min_p=min_p, repetition_penalty=penalty).without_unlikely(logits, tokens)
        ids, scores = torch.from_numpy(tokens)[None], torch.from_numpy(logits[0].copy())
        for step in (RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature),
                     MinPLogitsWarper(min_p)):
            scores = step(ids, scores)
        assert np.array_equal(np.isfinite(kept[0]), np.isfinite(scores.numpy()))
        assert 0 < np.isfinite(kept).sum() < 300 and kept.dtype == logits.dtype
        assert np.array_equal(kept[np.isfinite(kept)], logits[np.isfinite(kept)])


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_min_p_of_one_is_greedy_at_any_temperature(session, penalty):
    def answers(sampling):
        talk = Conversation(session, adapter="travel", sampling=sampling, max_new_tokens=24)
        return [talk.ask(text).text for text in ("Hello!", "Why?", "Tell me about Rome.")]

    hot = Sampling(5.0, top_p=1.0, top_k=0, min_p=1.0, repetition_penalty=penalty)
    greedy = answers(Sampling(repetition_penalty=penalty))
    assert answers(hot) == greedy != answers(dataclasses.replace(hot, min_p=0.0))


def test_a_repetition_penalty_is_that_of_transformers(session):
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    penalized, text = RepetitionPenaltyLogitsProcessor(1.5), "Hello! Hello! How are you?"
    talk = Conversation(session, sampling=Sampling(repetition_penalty=1.5), max_new_tokens=12)
    answer, ids = talk.ask(text), talk._lay_out([], text)
    drawn: list[int] = []
    while len(drawn) < answer.answer_tokens:
        scores = torch.from_numpy(session.logits(ids + drawn)[-1:])
        drawn.append(int(penalized(torch.tensor([ids + drawn]), scores).argmax()))
    assert answer.text == session.codec.decode([t for t in drawn if t not in session.end_ids])


@pytest.mark.parametrize(("search", "asked"), [
    ({}, Sampling(0.7, 0.95, 50)),
    ({"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}, Sampling(0.7, 0.95, 50)),
    ({"do_sample": True}, Sampling(1.0, 1.0, 50)),
    ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05},
     Sampling(0.6, 0.9, 20, repetition_penalty=1.05)),
    ({"do_sample": False, "temperature": 0.0, "top_p": 1.0, "top_k": 50}, Sampling(0.0, 1.0, 50)),
])
def test_what_a_model_asks_for_and_what_it_leaves_open(search, asked):
    assert Sampling.asked_by(search) == asked


def test_settings_come_before_what_the_model_asks_for():
    asked = Sampling(0.6, 0.9, 20, repetition_penalty=1.05)
    assert asked.settled(ChatConfig(), sample=True) == asked
    assert asked.settled(ChatConfig(), sample=False) == dataclasses.replace(asked, temperature=0.0)
    assert asked.settled(ChatConfig(temperature=0.3), sample=False).temperature == 0.3
    assert asked.settled(ChatConfig(temperature=0), sample=True).temperature == 0
    given = ChatConfig(temperature=1.2, top_p=0.5, top_k=0, min_p=0.1, repetition_penalty=1.2, seed=4)
    assert asked.settled(given, sample=True) == Sampling(1.2, 0.5, 0, 4, 0.1, 1.2)


@pytest.mark.parametrize("wrong", [
    {"temperature": None}, {"temperature": "hot"}, {"min_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0.0},
    {"top_k": -1}, {"top_p": 0.0}, {"seed": None}])
def test_wrong_values(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_what_holds_in_words():
    assert str(Sampling()) == "greedy"
    assert str(Sampling(0.7)) == "temperature 0.7, top-p 0.95, top-k 50, seed 0"
    assert str(Sampling(0, repetition_penalty=1.1)) == "greedy, repetition penalty 1.1"
    assert "min-p 0.05" in str(Sampling(1.0, min_p=0.05))
