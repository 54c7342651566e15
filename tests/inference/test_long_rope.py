"""LongRoPE's boundary crossed in the middle of an answer and of a conversation: what transformers says there."""

import numpy as np
import pytest
import torch
from family_models import FAMILIES, make

from phicli import Conversation, Session, optimize, quantize
from phicli.checkpoints.loading import load_base
from phicli.inference.generator import PREFILL_CHUNK

BORDER = 4096


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny):
    """A small Phi-3.5: in torch, and an ONNX session."""
    place = tmp_path_factory.mktemp("long")
    original = make(next(one for one in FAMILIES if "Phi-3.5" in one.name), place / "model", tiny)
    settings = {"root": place / "root", "device": "cpu"}
    base = quantize(str(original), samples=4, seq_len=64, rounding="nearest", **settings).folder
    with Session(optimize(str(original), activations="fp32", head="float", **settings).folder, "cpu") as session:
        yield load_base(base, "cpu", torch.float32).eval(), session


def greedy(model, ids: list[int], count: int, ends=()) -> list[int]:
    """Every token from a run of all before it."""
    drawn: list[int] = []
    with torch.inference_mode():
        while len(drawn) < count and not (drawn and drawn[-1] in ends):
            logits = model(torch.tensor([[*ids, *drawn]]), logits_to_keep=1, use_cache=False).logits
            drawn.append(int(logits[0, -1].argmax()))
    return drawn


def test_an_answer_that_crosses_it(models):
    model, session = models
    ids = np.random.default_rng(1).integers(10, 4000, BORDER - 6).tolist()
    generator = session.generator(BORDER + 100)
    for start in range(0, len(ids), 512):
        generator.append_tokens(ids[start : start + 512])
    assert [generator.next_token() for _ in range(12)] == greedy(model, ids, 12)


def test_a_long_prompt_in_parts(models):
    """Which keep the logits of few tokens in memory."""
    _, session = models
    ids = np.random.default_rng(2).integers(10, 4000, BORDER + 100).tolist()
    whole, parts = session.generator(len(ids)), session.generator(len(ids))
    whole.append_tokens(ids)
    parts.expect_long()
    for start in range(0, len(ids), PREFILL_CHUNK):
        parts.append_tokens(ids[start : start + PREFILL_CHUNK])
    assert np.abs(parts.logits()[-1] - whole.logits()[-1]).max() < 1e-3


def test_a_turn_that_crosses_it(models):
    model, session = models
    conversation = Conversation(session, max_new_tokens=6)
    messages, cached = [], []
    for text in ("train and harbour " * 1000, "bread " * 1100, "And then?"):
        messages.append({"role": "user", "content": text})
        ids = session.codec.encode_chat(messages)
        answer = conversation.ask(text)
        cached.append(answer.cached_tokens)
        wanted = greedy(model, ids, 6, session.end_ids)
        assert answer.text == session.codec.decode([token for token in wanted if token not in session.end_ids])
        messages.append({"role": "assistant", "content": answer.text})
    assert cached[:2] == [0, 0] and cached[2] > BORDER
