"""One request: its text, its end, what it may ask for, and what is refused."""

import json
import threading

import numpy as np
import pytest
from asking import QUESTION, ask

from phicli import BadInput, PhicliError, Sampling, UsageError
from phicli.inference.engine import Busy, Engine, Finish, Grammar, Request
from phicli.inference.engine.drawing import Drawing, logprob_of
from phicli.inference.engine.slots import Slot
from phicli.kernels.build import missing

pytestmark = pytest.mark.skipif(bool(missing("cpu")), reason=f"{missing('cpu')}")
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 2, 30]}},
        "required": ["city", "days"], "additionalProperties": False}


def test_the_end_of_an_answer(engine):
    text, pieces, end = ask(engine)
    drawn = [token for piece in pieces for token in piece.ids]
    assert end.reason == "stop" and end.completion_tokens == len(drawn) + 1 and end.stop_text is None
    assert text == engine.codec_of(None).decode(drawn)
    text, _, end = ask(engine, max_tokens=3)
    assert end.reason == "length" and end.completion_tokens == 3
    _, _, end = ask(engine, ignore_eos=True, max_tokens=engine.context)
    assert end.reason == "length" and end.prompt_tokens + end.completion_tokens == engine.context


def test_no_half_of_a_stop_text_is_shown(engine):
    whole, _, _ = ask(engine)
    for stop in (whole[10:16], whole[:2], whole[-1]):
        text, _, end = ask(engine, stop=(stop, "never there"))
        assert text == whole[: whole.find(stop)] and end.reason == "stop" and end.stop_text == stop
    text, pieces, _ = ask(engine, stop=(whole[4:9] + "\n\n", whole[-3:] + "?"))
    assert text == whole and any(not piece.text for piece in pieces)


@pytest.mark.parametrize(("grammar", "sampling"), [(Grammar.json_schema(CITY), Sampling()),
                                                   (Grammar.json_schema(CITY), Sampling(1.5, seed=2))])
def test_answers_follow_a_schema(engine, grammar, sampling):
    text, _, end = ask(engine, grammar=grammar, sampling=sampling, max_tokens=200)
    found = json.loads(text)
    assert end.reason == "stop" and found.keys() == {"city", "days"} and isinstance(found["days"], int)
    assert ", " in text and ": " in text and "\n" not in text


def test_answers_follow_other_grammars(engine):
    assert ask(engine, grammar=Grammar.regex("(yes|no), [0-9]{3}"))[0][-5:-3] == ", "
    assert ask(engine, grammar=Grammar.lark('start: "Rome" | "Oslo"'))[0] in ("Rome", "Oslo")


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Grammar.json_schema({"type": "nothing"}), "Invalid type"),
    (lambda: Grammar.json_schema({"type": {1, 2}}), "not a JSON schema"),
    (lambda: Grammar.regex("(a"), "unclosed group"),
    (lambda: Grammar.lark("start: other"), "unknown name"),
    (lambda: Grammar.regex("a" * 2_000_000), "more than"),
])
def test_what_is_no_grammar_says_why(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_probabilities_of_tokens(engine):
    _, pieces, _ = ask(engine, logprobs=3, max_tokens=6)
    for piece in pieces:
        (told,) = piece.logprobs
        assert (told.id,) == piece.ids and len(told.top) == 3
        assert told.top[0] == (told.id, told.logprob) and sum(np.exp(p) for _, p in told.top) <= 1
    assert all(not piece.logprobs for piece in ask(engine, max_tokens=3)[1])
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    wanted = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    assert abs(logprob_of(logits, 7, 0).logprob - wanted[7]) < 1e-5


def test_biases_and_penalties(engine):
    _, pieces, _ = ask(engine, max_tokens=1)
    (first,) = pieces[0].ids
    assert ask(engine, max_tokens=1, sampling=Sampling(logit_bias={first: -100}))[1][0].ids != (first,)
    forced = ask(engine, max_tokens=3, ignore_eos=True, sampling=Sampling(logit_bias={77: 100}))[1]
    assert [piece.ids for piece in forced] == [(77,)] * 3
    other = ask(engine, max_tokens=3, ignore_eos=True,
                sampling=Sampling(logit_bias={77: 100, 78: 98}, presence_penalty=2))[1]
    assert {piece.ids[0] for piece in other[:2]} == {77, 78}


def test_drawing_has_the_probabilities_that_it_should():
    logits = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], np.float32))
    for sampling, wanted in ((Sampling(1.0, top_p=1.0, top_k=0), [0.5, 0.2, 0.15, 0.1, 0.05]),
                             (Sampling(1.0, top_p=0.7, top_k=0), [5 / 7, 2 / 7, 0, 0, 0]),
                             (Sampling(1.0, top_p=1.0, top_k=3), [10 / 17, 4 / 17, 3 / 17, 0, 0]),
                             (Sampling(1.0, top_p=1.0, top_k=0, min_p=0.25), [10 / 17, 4 / 17, 3 / 17, 0, 0])):
        drawing = Drawing(sampling, [], 5)
        counts = np.bincount([drawing.draw(logits) for _ in range(4000)], minlength=5) / 4000
        assert np.abs(counts - wanted).max() < 0.03 and not counts[np.array(wanted) == 0].any()
    assert Drawing(Sampling(repetition_penalty=1e6), [0], 5).draw(logits + 3) == 1
    with pytest.raises(BadInput, match="no finite logits"):
        Drawing(Sampling(), [], 5).draw(logits * np.nan)


def test_cancelling_ends_at_once_and_a_full_queue_says_so(engine):
    ids, ends = engine.codec_of(None).encode_chat(QUESTION), []
    held, running = threading.Event(), threading.Semaphore(0)

    def deliver(event):
        if isinstance(event, Finish):
            ends.append(event)
        else:
            running.release()
            held.wait(30)  # so that nothing goes on while the queue fills

    endless = Request(ids, max_tokens=240, ignore_eos=True)
    handles = [engine.submit(endless, deliver)]
    assert running.acquire(timeout=30)
    handles += [engine.submit(endless, deliver) for _ in range(4)]  # a place is free
    with pytest.raises(Busy, match="3 requests are waiting"):
        engine.submit(endless, deliver)
    for handle in handles:
        handle.cancel()
        handle.cancel()
    held.set()
    end = ask(engine, max_tokens=4)[2]
    assert end.completion_tokens == 4 and [end.reason for end in ends] == ["cancelled"] * 5
    assert sorted(end.completion_tokens for end in ends)[:4] == [0] * 4 and ends[0].completion_tokens < 20
    for _ in engine.generate(endless):
        break  # leaving is cancelling
    assert ask(engine, max_tokens=2)[2].completion_tokens == 2
    with engine._scheduler._wake:  # so that none gets its place yet, of which two are free
        handles = [engine.submit(endless, ends.append) for _ in range(5)]
        with pytest.raises(Busy, match="3 requests are waiting"):
            engine.submit(endless, ends.append)
    for handle in handles:
        handle.cancel()
    assert ask(engine, max_tokens=2)[2].completion_tokens == 2


def test_what_is_refused(engine, two_graphs):
    for wrong, message in ((lambda: Request([]), "empty"), (lambda: Request([1], max_tokens=0), "max_tokens"),
                           (lambda: Request([1], stop=("",)), "stop text"), (lambda: Request([1], logprobs=99), "logp"),
                           (lambda: engine.submit(Request([5] * engine.context), print), "the context is"),
                           (lambda: engine.submit(Request([engine.vocab_size]), print), "vocabulary"),
                           (lambda: engine.submit(Request([-1]), print), "vocabulary"),
                           (lambda: engine.submit(Request([1], "nobody"), print), "no adapter 'nobody'"),
                           (lambda: engine.remove_adapter("nobody"), "no adapter"),
                           (lambda: engine.add_adapter("../x", two_graphs / "travel"), "is no name"),
                           (lambda: engine.add_adapter("x", two_graphs), "")):
        with pytest.raises(PhicliError, match=message):
            wrong()
    for wrong in ({"presence_penalty": 3}, {"frequency_penalty": float("nan")}, {"logit_bias": {1: 101}}):
        with pytest.raises(UsageError):
            Sampling(**wrong)
    with pytest.raises(UsageError, match="max_batch"):
        Engine(two_graphs / "onnx-ao", max_batch=0)


def test_a_model_that_no_batch_is_made_of_answers_too(optimized, two_graphs):
    """Its adapters are inputs of the graph, the same for all rows."""
    with Engine(optimized / "onnx-ao", max_batch=2) as alone:
        assert "layout 'inputs'" in alone.why_alone and alone.adapter_names() == ["cooking", "travel"]
        ids = alone.codec_of(None).encode_chat(QUESTION)
        plain = [[*alone.generate(Request(ids, name, max_tokens=8))] for name in (None, "travel", "cooking")]
        assert all(isinstance(events[-1], Finish) and not events[-1].error for events in plain)
        assert len({tuple(t for e in events[:-1] for t in e.ids) for events in plain}) == 3
        with pytest.raises(PhicliError, match="takes no adapters while it runs"):
            alone.add_adapter("late", two_graphs / "travel")


def test_common_beginnings():
    slot = Slot(0, 3, [*range(100)])
    for other, wanted in (([], 0), ([1], 0), ([*range(100)], 100), ([*range(120)], 100), ([*range(57), 9], 57),
                          ([*range(7)], 7)):
        assert slot.common(3, other) == wanted and slot.common(0, other) == 0
