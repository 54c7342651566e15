"""What ends an answer: texts to stop at, and a greedy model that goes round in a circle."""

import json
import random
import shutil

import pytest
import torch
from optimized import build
from safetensors.torch import load_file, save_file

from phicli.errors import UsageError
from phicli.inference.conversation import Conversation
from phicli.inference.endings import StopText, is_prose, repeated
from phicli.inference.sampling import Sampling
from phicli.inference.session import Session
from phicli.text import TextCodec

QUESTION = "Where is it quiet in spring?"
CIRCLE = " The ferry sails at noon and comes back in the evening."


@pytest.fixture(scope="module")
def session(optimized):
    return Session(optimized / "onnx-ao")


@pytest.fixture(scope="module")
def circling(tiny, tmp_path_factory):
    """A model that looks at the last token only, and from any but those of CIRCLE goes to its first."""
    folder = tmp_path_factory.mktemp("circling")
    model = shutil.copytree(tiny, folder / "model")
    circle = TextCodec(model).encode_text(CIRCLE)
    assert len({*circle}) == len(circle) >= 8
    tensors = {name: torch.zeros_like(t) if "o_proj" in name or "down_proj" in name else t
               for name, t in load_file(model / "model.safetensors").items()}
    embeddings = torch.nn.functional.normalize(
        torch.randn(tensors["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(0)))
    head = torch.zeros_like(embeddings)
    for token, following in zip(circle, circle[1:] + circle[:1], strict=True):
        head[following] = embeddings[token]
    start = TextCodec(model).encode_chat([{"role": "user", "content": QUESTION}])[-1]
    head[circle[0]] += embeddings[start]
    tensors |= {"model.embed_tokens.weight": embeddings.bfloat16(), "lm_head.weight": head.bfloat16(),
                "model.norm.weight": torch.ones_like(tensors["model.norm.weight"])}
    save_file({name: t.contiguous() for name, t in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    build(model, folder / "onnx-ao", folder / "cache")
    return folder


def test_a_greedy_answer_that_goes_round_in_a_circle_is_ended_after_three_rounds(circling):
    with Session(circling / "onnx-ao") as session:
        answer = Conversation(session, max_new_tokens=100).ask(QUESTION)
        assert answer.text.strip() == (CIRCLE * 3).strip() and answer.finish_reason == "repetition"
        sampled = Conversation(session, sampling=Sampling(temperature=0.01), max_new_tokens=100).ask(QUESTION)
        assert sampled.text.startswith(answer.text) and sampled.finish_reason == "length"


def test_the_command_says_that_the_model_loops(cli, circling):
    for flags in ([], ["--json"]):
        done = cli("chat", "--root", circling, "-p", QUESTION, *flags)
        assert done.code == 0 and "the model loops" in done.err and "--repetition-penalty" in done.err
    assert json.loads(done.out)["finish_reason"] == "repetition"
    sampled = cli("chat", "--root", circling, "-p", QUESTION, "--temperature", "0.01", "--max-new-tokens", "60")
    assert sampled.out.count("ferry") > 3 and "loops" not in sampled.err


def test_only_eight_tokens_and_more_that_come_three_times_running_are_a_repetition():
    eight, five = list(range(8)), list(range(5))
    assert repeated([99, *eight * 3]) == eight and repeated([7] * 24) == [7] * 8
    assert repeated(eight * 2 + eight[:7]) == repeated([7] * 23) == repeated(eight * 3 + [99]) == ()
    assert repeated(five * 5) == () and repeated(five * 6) == five * 2
    assert repeated([*eight, *eight, 99, *eight]) == ()
    longest = list(range(256))
    assert repeated(longest * 3) == longest and repeated([*longest, 256] * 3) == ()


@pytest.mark.parametrize(("block", "before", "prose"), [
    ("or a bus ride or a bus ride ", "", True), ("東京は静かです。", "", True), ("-----------\n", "", False),
    ("0, 0, 0, 0, ", "[", False), ("        ", "", False), ("| yes | no |\n", "", False),
    ("    pass\n", "```python\n", False), ("and so on ", "```\nx\n```\n", True),
])
def test_figures_rulers_tables_and_code_may_repeat_themselves(block, before, prose):
    assert is_prose(block, before) is prose


def test_the_text_before_a_stop_text_is_the_same_wherever_the_pieces_part():
    rng = random.Random(5)
    for _ in range(3000):
        stops = [stop for stop in ("aab", "abb", "ba\n", "cc") if rng.random() < 0.6]
        text = "".join(rng.choices("abc\n", k=rng.randrange(20)))
        ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        found, shown, rest = StopText(stops), "", text
        while rest and not found.found:
            n = rng.randint(1, 4)
            shown, rest = shown + found.step(rest[:n]), rest[n:]
            assert text.startswith(shown)
        assert bool(found.found) == bool(ends) and found.given == shown
        if ends:
            assert shown == text[: min(ends)]
        else:  # what is held back is only what may become a stop text
            assert any(stop.startswith(text[len(shown):]) for stop in [*stops, ""])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_text_that_is_never_shown(session, stream):
    whole = Conversation(session).ask(QUESTION)
    middle = len(whole.text) // 2
    for stop in (whole.text[middle : middle + 9], whole.text[:3], whole.text[-1]):
        pieces: list[str] = []
        talk = Conversation(session, stop=["nowhere in it", stop])
        answer = talk.ask(QUESTION, pieces.append)
        assert answer.text == whole.text.partition(stop)[0] == "".join(pieces)
        assert answer.finish_reason == "stop" and answer.answer_tokens <= whole.answer_tokens
        assert talk.turns == [(QUESTION, answer.text)]
        assert talk.ask("And then?").cached_tokens > 0


def test_half_a_stop_text_at_the_end_is_shown(session):
    whole = Conversation(session).ask(QUESTION).text
    pieces: list[str] = []
    answer = Conversation(session, stop=whole[-3:] + "!").ask(QUESTION, pieces.append)
    assert answer.text == whole == "".join(pieces)


def test_a_control_token_can_be_a_stop_text(session, monkeypatch):
    usual = Conversation(session).ask(QUESTION)
    monkeypatch.setattr(session, "end_ids", frozenset())
    assert Conversation(session, max_new_tokens=40).ask(QUESTION).finish_reason == "length"
    answer = Conversation(session, max_new_tokens=40, stop=session.codec.turns.end).ask(QUESTION)
    assert (answer.text, answer.finish_reason) == (usual.text, "stop")


def test_stop_texts_that_are_none(session):
    for wrong in ("", ["a", ""], [1], 7):
        with pytest.raises(UsageError, match="stop"):
            Conversation(session, stop=wrong)
