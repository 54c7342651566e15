"""Rows that run together: each gets what it gets alone, whoever comes, goes or has another adapter beside it."""

import random
import threading
import time

import psutil
import pytest
from onnx_checkpoints import random_adapter

from phicli import BadInput, Sampling, Session
from phicli.inference.engine import Engine, Finish, Piece, Request
from phicli.kernels.build import missing

pytestmark = pytest.mark.skipif(bool(missing("cpu")), reason=f"{missing('cpu')}")
WORDS = ("where", "should", "we", "go", "in", "spring", "to", "see", "an", "old", "temple", "and", "eat", "near")


@pytest.fixture(scope="module")
def folder(two_graphs):
    return two_graphs / "onnx-ao"


@pytest.fixture(scope="module")
def engine(folder, two_graphs, tiny, tmp_path_factory):
    """With a third adapter that came after it was opened."""
    late = random_adapter(tiny, tmp_path_factory.mktemp("late") / "late", r=16, lora_alpha=64,
                          target_modules=["qkv_proj", "down_proj"])
    with Engine(folder, max_batch=5) as opened:
        opened.add_adapter("late", late)
        yield opened


def tokens(events) -> list[int]:
    return [token for event in events if isinstance(event, Piece) for token in event.ids]


def requests(engine: Engine, count: int, seed: int, longest: int = 30, **settings) -> list[Request]:
    rng = random.Random(seed)
    names = [None, *engine.adapter_names()]
    found = []
    for _ in range(count):
        adapter, text = rng.choice(names), " ".join(rng.choices(WORDS, k=rng.randint(2, 3 * longest)))
        ids = engine.codec_of(adapter).encode_chat([{"role": "user", "content": text}])
        found.append(Request(ids, adapter, max_tokens=rng.randint(2, longest), **settings))
    return found


def together(engine: Engine, asked: list[Request], seed: int) -> list[list[int]]:
    """The tokens of each, submitted at random moments."""
    rng, found, done = random.Random(seed), [[] for _ in asked], threading.Semaphore(0)
    for request, own in zip(asked, found, strict=True):
        def deliver(event, own=own):
            own.extend(event.ids) if isinstance(event, Piece) else done.release()
        engine.submit(request, deliver)
        time.sleep(rng.random() * 0.03)
    for _ in asked:
        assert done.acquire(timeout=120)
    return found


def test_staggered_rows_with_adapters_get_what_they_get_alone_and_from_a_session(engine, folder):
    asked = requests(engine, 24, 1)
    alone = [tokens(engine.generate(request)) for request in asked]
    assert len({tuple(own) for own in alone}) > 12  # they differ
    assert together(engine, asked, 1) == alone
    assert engine.stats().running == engine.stats().waiting == 0
    with Session(folder) as session:
        for request, mine in zip(asked, alone, strict=True):
            if request.adapter == "late":
                continue
            generator = session.generator(len(request.ids) + request.max_tokens, request.adapter)
            generator.append_tokens(request.ids)
            drawn = []
            while len(drawn) < request.max_tokens and (token := generator.next_token()) not in session.end_ids:
                drawn.append(token)
            assert drawn == mine


def test_a_seed_gives_the_same_text_whoever_is_beside_it(engine):
    asked = requests(engine, 8, 2, sampling=Sampling(1.2, seed=7, repetition_penalty=1.1, frequency_penalty=0.3))
    alone = [tokens(engine.generate(request)) for request in asked]
    assert together(engine, asked, 2) == alone


def test_beginnings_that_are_kept_change_nothing(folder):
    """A common system message, and conversations that go on, with adapters of their own."""
    system = {"role": "system", "content": "You help people who travel and know every harbour and station. " * 4}
    with (Engine(folder, max_batch=3, prefix_cache=False, fixed_batch=True) as plain,
          Engine(folder, max_batch=3) as keeping):
        for adapter in (None, "travel", "cooking"):
            messages = [system]
            for text in ("Where is it warm in May?", "And how do I get there?", "Thank you. What do I eat?"):
                messages.append({"role": "user", "content": text})
                request = Request(plain.codec_of(adapter).encode_chat(messages), adapter, max_tokens=20)
                mine, own = [*plain.generate(request)], [*keeping.generate(request)]
                assert tokens(own) == tokens(mine)
                assert mine[-1].cached_tokens == 0
                assert (own[-1].cached_tokens > 30) == (len(messages) > 2)
                messages.append({"role": "assistant", "content": plain.codec_of(adapter).decode(tokens(own))})
        assert keeping.stats().cached_tokens > 200


def test_adapters_come_and_go_while_rows_run(engine, two_graphs):
    ids = engine.codec_of("travel").encode_chat([{"role": "user", "content": "Where should I go?"}])
    begun, told, ended = threading.Event(), [], threading.Event()

    def deliver(event):
        told.append(event)
        begun.set()
        if isinstance(event, Finish):
            ended.set()

    expected = tokens(engine.generate(Request(ids, "late", max_tokens=150, ignore_eos=True)))
    engine.submit(Request(ids, "late", max_tokens=150, ignore_eos=True), deliver)
    assert begun.wait(30)
    engine.add_adapter("again", two_graphs / "travel")
    engine.remove_adapter("late")
    for name in ("again", "travel"):
        assert tokens(engine.generate(Request(ids, name, max_tokens=12))) == tokens(
            engine.generate(Request(ids, "travel", max_tokens=12)))
    assert ended.wait(60) and tokens(told) == expected
    with pytest.raises(BadInput, match="no adapter 'late'"):
        engine.submit(Request(ids, "late"), deliver)
    with pytest.raises(BadInput, match="already"):
        engine.add_adapter("again", two_graphs / "travel")
    engine.remove_adapter("again")
    engine.add_adapter("late", two_graphs / "cooking")  # the name is free for another one
    assert tokens(engine.generate(Request(ids, "late", max_tokens=12))) == tokens(
        engine.generate(Request(ids, "cooking", max_tokens=12)))


def test_adapters_that_come_and_go_often_take_no_more_memory(engine, two_graphs):
    ids = engine.codec_of("travel").encode_chat([{"role": "user", "content": "Where should I go?"}])
    expected = tokens(engine.generate(Request(ids, "travel", max_tokens=8)))
    before = sum(value.nbytes for value in engine._adapters.current.inputs.values())
    for n in range(12):
        engine.add_adapter(f"n{n}", two_graphs / "travel")
        assert tokens(engine.generate(Request(ids, f"n{n}", max_tokens=8))) == expected
        engine.remove_adapter(f"n{n}")
    assert sum(value.nbytes for value in engine._adapters.current.inputs.values()) < 4 * before


def test_rows_run_and_end_while_an_adapter_is_read(engine, two_graphs, monkeypatch):
    adding, go_on, add = threading.Event(), threading.Event(), engine._adapters.add

    def slow(*args):
        adding.set()
        assert go_on.wait(60)
        return add(*args)

    monkeypatch.setattr(engine._adapters, "add", slow)
    thread = threading.Thread(target=engine.add_adapter, args=("slow", two_graphs / "travel"))
    thread.start()
    try:
        assert adding.wait(30)
        for request in requests(engine, 3, 5, longest=4):
            assert [*engine.generate(request)][-1].reason in ("stop", "length")
    finally:
        go_on.set()
        thread.join(30)
    assert "slow" in engine.adapter_names()
    engine.remove_adapter("slow")


def test_memory_stays_where_it_is(engine):
    """And no place is lost, with some requests cancelled on the way."""
    process, rng = psutil.Process(), random.Random(3)

    def round_of(count: int) -> int:
        done = threading.Semaphore(0)
        for request in requests(engine, count, rng.randrange(10**6), longest=6):
            deliver = lambda event: done.release() if isinstance(event, Finish) else None  # noqa: E731
            handle = engine.submit(request, deliver)
            if rng.random() < 0.3:
                handle.cancel()
        for _ in range(count):
            assert done.acquire(timeout=120)
        return process.memory_info().rss

    before = [round_of(60) for _ in range(2)][-1]
    after = [round_of(60) for _ in range(3)][-1]
    assert after - before < 30e6
    assert engine.stats().running == engine.stats().waiting == 0
