"""Tokens that are guessed and run at once: answers stay what they were, and nothing is guessed that does not pay."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from test_engine_batch import requests, together, tokens

from phicli import Sampling, UsageError, optimize
from phicli.export.token_cache import put_all_scales
from phicli.inference.engine import Engine, Finish, Grammar, Request
from phicli.inference.engine.drawing import Drawing
from phicli.inference.engine.lookup import LONGEST, Lookup
from phicli.inference.engine.row import Row
from phicli.inference.engine.speculation import SIZES, Speculation, Times
from phicli.kernels.build import matmul_missing, missing

pytestmark = pytest.mark.skipif(bool(missing("cpu")), reason=f"{missing('cpu')}")
TEXT = "We go to the old temple near the harbour. We go to the old market near the harbour. "


@pytest.fixture(scope="module")
def plain(two_graphs):
    with Engine(two_graphs / "onnx-ao", max_batch=3, context=256, prefix_cache=False, speculate="off") as opened:
        yield opened


@pytest.fixture(scope="module")
def guessing(two_graphs):
    with Engine(two_graphs / "onnx-ao", max_batch=3, context=256, speculate=15) as opened:
        yield opened


def prompt(engine: Engine, text: str = TEXT) -> list[int]:
    return engine.codec_of(None).encode_chat([{"role": "user", "content": text}])


@pytest.mark.parametrize("settings", [
    {"ignore_eos": True, "max_tokens": 256},  # to the end of the context
    {"sampling": Sampling(0.4, seed=3, repetition_penalty=1.02, presence_penalty=-0.5, logit_bias={77: 9}),
     "max_tokens": 80, "ignore_eos": True},
    {"logprobs": 2, "max_tokens": 100, "ignore_eos": True},
    {"grammar": Grammar.regex("(go to the old (temple|market), ){9}"), "max_tokens": 200},
    {"grammar": Grammar.regex("((harbour|market) and ){12}"), "max_tokens": 200, "sampling": Sampling(1.0, seed=1)},
], ids=["greedy", "penalties", "logprobs", "grammar", "sampled"])
def test_answers_are_what_they_are_without(plain, guessing, settings):
    mine, own = ([*engine.generate(Request(prompt(plain), "travel", **settings))] for engine in (plain, guessing))
    assert tokens(own) == tokens(mine)
    assert "".join(e.text for e in own[:-1]) == "".join(e.text for e in mine[:-1])
    assert 0 < own[-1].accepted_tokens <= own[-1].guessed_tokens and not mine[-1].guessed_tokens
    assert (own[-1].reason, own[-1].completion_tokens) == (mine[-1].reason, mine[-1].completion_tokens)
    for one, other in zip(own[:-1], mine[:-1], strict=True):
        for a, b in zip(one.logprobs, other.logprobs, strict=True):
            assert a.id == b.id and abs(a.logprob - b.logprob) < 1e-3


def test_a_stop_text_within_a_guess_ends_the_answer(plain, guessing):
    whole = plain.codec_of(None).decode(tokens(plain.generate(
        Request(prompt(plain), max_tokens=80, ignore_eos=True))))
    for stop in (whole[len(whole) // 2 :][:9], whole[-12:-4]):
        mine, own = ([*engine.generate(Request(prompt(plain), max_tokens=80, ignore_eos=True, stop=(stop,)))]
                     for engine in (plain, guessing))
        assert tokens(own) == tokens(mine) and own[-1].stop_text == stop


def test_rows_beside_each_other_and_conversations_that_go_on(plain, guessing):
    """What was guessed wrongly is not taken for a row's keys and values, its own or another's."""
    asked = requests(plain, 16, 5, ignore_eos=True)
    before = guessing.stats()
    assert together(guessing, asked, 5) == [tokens(plain.generate(request)) for request in asked]
    after = guessing.stats()
    assert before.guessed_tokens < after.guessed_tokens
    assert after.guessed_tokens - after.accepted_tokens > before.guessed_tokens - before.accepted_tokens
    assert after.generated_tokens - before.generated_tokens == sum(request.max_tokens for request in asked)
    messages = []
    for text in (TEXT, "And in May?", TEXT):
        messages.append({"role": "user", "content": text})
        ids = plain.codec_of(None).encode_chat(messages)[-200:]
        mine, own = ([*engine.generate(Request(ids, max_tokens=30))] for engine in (plain, guessing))
        assert tokens(own) == tokens(mine)
        messages.append({"role": "assistant", "content": plain.codec_of(None).decode(tokens(own))})


@pytest.mark.skipif(bool(matmul_missing()), reason=f"{matmul_missing()}")
def test_scores_are_the_same_to_the_last_bit(two_graphs, tmp_path):
    """With products and attention of ours, so that all requests may be guessed at."""
    adapters = [f"{name}={two_graphs / name}" for name in ("cooking", "travel")]
    folder = optimize(root=tmp_path, base=str(two_graphs / "awq"), adapters=adapters, device="cpu").folder
    with (Engine(folder, max_batch=3, prefix_cache=False, speculate="off") as plain,
          Engine(folder, max_batch=3, prefix_cache=False, speculate=7) as guessing):
        assert not guessing._scheduler._rows.alters
        for adapter in (None, "travel"):
            request = Request(prompt(plain), adapter, logprobs=2, max_tokens=120, ignore_eos=True)
            mine, own = ([*engine.generate(request)] for engine in (plain, guessing))
            assert own[-1].accepted_tokens
            assert [p for e in own[:-1] for p in e.logprobs] == [p for e in mine[:-1] for p in e.logprobs]
        asked = requests(plain, 12, 5, ignore_eos=True)
        assert together(guessing, asked, 5) == [tokens(plain.generate(request)) for request in asked]


def test_with_keys_and_values_in_int8(two_graphs, tmp_path):
    folder = shutil.copytree(two_graphs / "onnx-ao", tmp_path / "onnx-ao")
    (folder / "phicli.json").unlink()  # which says what the files were
    put_all_scales([folder / "model.onnx"], folder, "cpu")
    with (Engine(folder, max_batch=2, speculate="off") as plain, Engine(folder, max_batch=2, speculate=7) as guessing):
        request = Request(prompt(plain, 40 * TEXT), max_tokens=60, ignore_eos=True)
        own = [*guessing.generate(request)]
        assert tokens(own) == tokens(plain.generate(request))
        assert own[-1].accepted_tokens and len(request.ids) > 512
        assert not guessing._scheduler._rows.alters


def test_a_lookup_takes_the_longest_and_last_place():
    lookup = Lookup(100)
    lookup.follow([1, 2, 3, 9, 5, 2, 3, 8, 7, 1, 2, 3])
    assert lookup.guess(3) == [9, 5, 2] and len(lookup.chances(4)) == 4
    lookup.follow([1, 2, 3, 9, 5, 2, 3, 8, 7, 1, 2, 3, 9])
    assert lookup.guess(9) == [5, 2, 3, 8, 7, 1, 2, 3, 9]
    assert lookup.guess(12)[9:] == [5, 2, 3]  # where nothing is known yet, the guess goes on
    lookup.follow([1, 2, 3, 9, 5, 2, 3, 8, 7, 1, 2, 3, 9, 4])
    assert lookup.guess(3) == lookup.chances(3) == []
    looped = Lookup(100)
    looped.follow([6, 6, 6])
    looped.follow([6] * 20)  # many at once, as after a run with guesses
    assert looped.guess(3) == [6, 6, 6] and looped.chances(1)[0] > 0.8


def test_how_often_guesses_are_right_is_learnt_from_tokens_that_came():
    said = [*range(50)]
    right, wrong = Lookup(1000), Lookup(1000)
    for end in range(50, 110):
        right.follow([*said, *said, *said][: end + 1])
        wrong.follow([*said, *(token for n in range(30) for token in (n, n + 1, 77))][: end + 1])
    assert right.chances(15)[-1] > 0.9
    assert wrong.right[2] < 0.1 and wrong.right[LONGEST] == Lookup(9).right[LONGEST]


def rows_of(*repeating: bool) -> list[Row]:
    said = np.random.default_rng(0).permutation(40).tolist()
    found = []
    for repeats in repeating:
        request = Request([*said, *said[:20]] if repeats else said)
        codec = SimpleNamespace(stream=lambda: None)
        found.append(Row(request, print, codec, 0, frozenset(), 999, Drawing(Sampling(), [], 99)))
        found[-1].ran = len(request.ids)
    return found


def measured(plain: float, size: float, rows: int, alters: bool = False) -> Speculation:
    """With times of a step of so many rows, and of a row with guesses."""
    found = Speculation(SimpleNamespace(warming=0, alters=alters), None)
    found.times.add(rows, 1, plain)
    for count in SIZES:
        found.times.add(1, count, size)
    return found


def test_guesses_run_only_where_every_row_gains():
    for plain, size, rows, runs in ((1, 1.5, rows_of(True), True), (1, 9, rows_of(True), False),
                                    (1, 1.5, rows_of(False), False), (1, 1.5, rows_of(True, False), False),
                                    (1, 1, rows_of(True, True), True), (1, 1, rows_of(*8 * [True]), False)):
        found = measured(plain, size, len(rows)).guesses(rows)
        assert (found.keys() == set(rows)) if runs else not found
    assert not measured(1, 1.5, 1, alters=True).guesses(rows_of(True))  # a request that has to be repeatable
    assert not Speculation(SimpleNamespace(warming=0, alters=False), None).guesses(rows_of(True))  # no time known


def test_times_are_measured_again_now_and_then():
    times = Times(warming=2)
    for seconds in (9, 8, 7):
        assert times.of(1, 4) is None
        times.add(1, 4, seconds)
    assert times.of(1, 4) == 7
    for _ in range(600):
        times.add(1, 1, 1)
    assert times.of(1, 4) is None
    times.add(1, 4, 5)
    assert times.of(1, 4) == 5


def test_what_is_guessed_is_a_setting(two_graphs, guessing):
    with pytest.raises(UsageError, match="speculate"):
        Engine(two_graphs / "onnx-ao", speculate="many")
    end = [*guessing.generate(Request(prompt(guessing), max_tokens=1))][-1]
    assert isinstance(end, Finish) and end.guessed_tokens == 0
