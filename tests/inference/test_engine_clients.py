"""Clients that fail or close the engine, and faults of its own: nobody else is harmed, and nobody waits for ever."""

import threading
import time

import pytest
from asking import QUESTION, ask

from phicli.inference.engine import Busy, Engine, Finish, Request
from phicli.inference.engine.memory import CpuMemory
from phicli.kernels.build import missing

pytestmark = pytest.mark.skipif(bool(missing("cpu")), reason=f"{missing('cpu')}")


def test_a_client_that_fails_harms_nobody(engine):
    def broken(event):
        raise RuntimeError("gone")

    engine.submit(Request(engine.codec_of(None).encode_chat(QUESTION), max_tokens=240, ignore_eos=True), broken)
    assert ask(engine, max_tokens=5)[2].completion_tokens == 5
    until = time.monotonic() + 10  # the last one is told its end before its place is free
    while engine.stats().running and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.stats().running == 0


def test_a_tokenizer_that_fails_ends_one_answer(engine, monkeypatch):
    codec = engine.codec_of(None)
    with monkeypatch.context() as patch:
        patch.setattr(codec, "decode", lambda ids: 1 / 0)
        end = ask(engine, max_tokens=3)[2]
    assert end.reason == "error" and "division by zero" in str(end.error)

    class Broken:
        def step(self, token):
            raise ValueError("no such token")

    with monkeypatch.context() as patch:
        patch.setattr(codec, "stream", Broken)
        pieces, end = ask(engine, max_tokens=3)[1:]
    assert not pieces and end.reason == "error" and "no such token" in str(end.error)
    assert ask(engine, max_tokens=3)[2].reason == "length"


@pytest.mark.parametrize("apart", [False, True])
def test_a_client_may_close_the_engine(two_graphs, monkeypatch, apart):
    monkeypatch.setattr(CpuMemory, "apart", apart)
    engine, ends, done = Engine(two_graphs / "onnx-ao", context=64), [], threading.Event()

    def deliver(event):
        if isinstance(event, Finish):
            ends.append(event)
            done.set()
        else:
            engine.close()

    engine.submit(Request(engine.codec_of(None).encode_chat(QUESTION), ignore_eos=True), deliver)
    assert done.wait(30) and ends[0].reason in ("cancelled", "length")
    engine._scheduler._thread.join(30)
    assert not engine._scheduler._thread.is_alive()


def test_a_closed_engine_ends_what_runs(two_graphs):
    engine = Engine(two_graphs / "onnx-ao", context=64)
    assert engine.context == 64
    found, begun = [], threading.Event()
    ids = engine.codec_of(None).encode_chat(QUESTION)
    engine.submit(Request(ids, ignore_eos=True), lambda event: (found.append(event), begun.set()))
    assert begun.wait(30)
    engine.close()
    assert isinstance(found[-1], Finish) and found[-1].reason in ("cancelled", "length")
    with pytest.raises(Busy, match="closed"):
        engine.submit(Request(ids), print)


def test_no_client_waits_for_ever_where_the_engine_fails(two_graphs, monkeypatch):
    """A GPU that is gone, for one: giving back a place fails."""
    def gone(self, row):
        raise RuntimeError("gone")

    with Engine(two_graphs / "onnx-ao", context=64) as engine:
        monkeypatch.setattr(type(engine._scheduler._rows), "leave", gone)
        ids, ends = engine.codec_of(None).encode_chat(QUESTION), []
        done = threading.Semaphore(0)
        for most in (2, 40):
            engine.submit(Request(ids, max_tokens=most, ignore_eos=True),
                          lambda event: (ends.append(event), done.release()) if isinstance(event, Finish) else None)
        assert done.acquire(timeout=30) and done.acquire(timeout=30)
        assert [end.reason for end in ends] == ["length", "error"] and "gone" in str(ends[1].error)
        with pytest.raises(Busy, match="closed"):
            engine.submit(Request(ids), print)
