"""Several users of one session: one graph for all of them, from several threads, until it is closed."""

import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest
from onnx_checkpoints import nearest_awq, random_adapter

from phicli import Conversation, Session, optimize
from phicli.errors import BadInput, UsageError
from phicli.export.resident import GRAPHS
from phicli.hardware.driver import gpu_count

LAYOUTS = ["inputs", "resident", "fused"]
ALL = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
ADAPTERS = [None, "one", "two"]
QUESTIONS = ["Hello!", "Where should I eat in Rome?", "And what should I see first?"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, tiny) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    nearest_awq(tiny, folder / "awq")
    for name, rank in (("one", 4), ("two", 12)):
        random_adapter(tiny, folder / name, r=rank, target_modules=ALL)
    return folder


def build(workshop: Path, root: Path, layout: str, *names: str, **settings) -> Path:
    settings = {"device": "cpu", "activations": "fp32", "head": "float", **settings}
    return optimize(root=root, base=str(workshop / "awq"), adapters=[f"{name}={workshop / name}" for name in names],
                    adapter_layout=layout, **settings).folder


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request, workshop, tmp_path_factory) -> Path:
    return build(workshop, tmp_path_factory.mktemp(request.param), request.param, "one", "two")


@pytest.fixture
def models(monkeypatch) -> list[og.Model]:
    """Every model that genai makes during the test, in order."""
    made: list[og.Model] = []
    real = og.Model

    def counted(config):
        made.append(real(config))
        return made[-1]

    monkeypatch.setattr(og, "Model", counted)
    return made


def answers(session: Session, adapter: str | None) -> list[str]:
    talk = Conversation(session, adapter=adapter, max_new_tokens=24)
    return [talk.ask(question).text for question in QUESTIONS]


def test_a_graph_with_adapters_gives_without_one_what_the_graph_without_gives(folder, models):
    with Session(folder) as both, Session(folder, adapters=False) as plain:
        ids = both.codec.encode_text("Rome is a city in Italy. Where should I eat there? " * 3)
        assert both.takes_adapters and plain.takes_adapters == (not (folder / "base.onnx").exists())
        wanted = plain.logits(ids)
        for between in ("one", None, "two"):
            np.testing.assert_allclose(both.logits(ids), wanted, atol=1e-4)
            assert np.abs(both.logits(ids, between) - wanted).max() > 0.05 or between is None
        assert answers(both, None) == answers(plain, None)
        if not plain.takes_adapters:
            with pytest.raises(UsageError, match="opened without adapters"):
                plain.load_adapter("one")
            with pytest.raises(BadInput, match="there are: one, two"):
                plain.load_adapter("three")
    assert len(models) == 2


def test_conversations_in_turns_disturb_each_other_not(folder, models):
    with Session(folder) as session:
        wanted = {name: answers(session, name) for name in ADAPTERS}
        talks = {name: Conversation(session, adapter=name, max_new_tokens=24) for name in ADAPTERS}
        found = {name: [] for name in ADAPTERS}
        for question in QUESTIONS:
            for name, talk in talks.items():
                found[name].append(talk.ask(question).text)
                assert talk.last.cached_tokens > 0 or question == QUESTIONS[0]
    assert found == wanted and len({*map(str, wanted.values())}) == 3 and len(models) == 1


def test_conversations_in_threads_say_what_each_says_alone(folder):
    check_threads(folder)


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_count(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_they_do_so_with_a_cuda_graph(workshop, tmp_path, layout):
    check_threads(build(workshop, tmp_path, layout, "one", "two", device="cuda", activations="int8", cuda_graph=True))


def check_threads(folder: Path) -> None:
    """Two conversations of each adapter, all begun at once on a session that has loaded no adapter yet."""
    with Session(folder) as session:
        wanted = {name: answers(session, name) for name in ADAPTERS}
    with Session(folder) as session:
        found, ready = [], threading.Barrier(2 * len(ADAPTERS))

        def talk(name):
            ready.wait()
            try:
                found.append((name, answers(session, name)))
            except Exception as e:
                found.append((name, repr(e)))

        threads = [threading.Thread(target=talk, args=(name,), daemon=True) for name in 2 * ADAPTERS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert sorted(map(str, found)) == sorted(str((name, wanted[name])) for name in 2 * ADAPTERS)


def test_adapters_are_loaded_once_however_many_ask_at_once(folder, monkeypatch):
    loads, real = [], og.Adapters

    class Counted:
        def __new__(cls, model):
            loads.append(cls)
            return real(model)

    monkeypatch.setattr(og, "Adapters", Counted)
    with Session(folder) as session:
        threads = [threading.Thread(target=session.load_adapter, args=(name,)) for name in 4 * ["one", "two"]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(loads) == 2


def test_closed_it_gives_every_user_an_error(folder):
    with Session(folder) as session:
        talk, generator = Conversation(session, adapter="one", max_new_tokens=4), session.generator(16)
        assert talk.ask("Hello!").answer_tokens > 0 and not session.closed
    session.close()  # once more
    assert session.closed and talk.cached_tokens == 0 and talk.turns
    for use in (lambda: session.logits([5]), lambda: session.generator(8), lambda: session.load_adapter("two"),
                lambda: session.load_adapter("one"), lambda: generator.append_tokens([5]), generator.next_token,
                generator.logits, generator.tokens, lambda: generator.rewind_to(0), lambda: talk.ask("Still there?"),
                lambda: Conversation(session, adapter="one"), lambda: Conversation(session).ask("Hello?")):
        with pytest.raises(UsageError, match="the session is closed") as e:
            use()
        assert "with Session" in e.value.hint
    with Session(folder) as another:  # the turns go on elsewhere
        talk.use_session(another)
        assert talk.ask("Still there?").adapter == "one" and len(talk.turns) == 2


def test_closed_by_another_thread_in_the_middle_of_an_answer(folder):
    session = Session(folder)
    talk, begun, ended = Conversation(session, adapter="two", max_new_tokens=2000), threading.Event(), []

    def ask():
        try:
            while True:
                ended.append(talk.ask("Tell me all about Rome.", lambda piece: begun.set()))
        except Exception as e:
            ended.append(e)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert begun.wait(60)
    session.close()
    thread.join(60)
    assert not thread.is_alive() and isinstance(ended[-1], UsageError) and "closed" in str(ended[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mapped files are read from /proc")
def test_closed_it_gives_its_memory_back(folder):
    """The weights, which a session maps, are mapped no more, though a conversation and a generator of it are kept."""
    def mapped() -> bool:
        return str(folder.resolve()) in Path("/proc/self/maps").read_text()

    assert not mapped()
    with Session(folder) as session:
        talk, generator = Conversation(session, adapter="one", max_new_tokens=2), session.generator(16, "two")
        assert talk.ask("Hello!").text is not None and mapped()
    assert not mapped() and generator.token_count() == 0
    with pytest.raises(ValueError, match="of the user"), Session(folder) as session:
        raise ValueError("of the user")
    assert not mapped()


def test_an_adapter_added_later(workshop, tmp_path, folder):
    layout = next(name for name in LAYOUTS if name in folder.parent.name)
    own = build(workshop, tmp_path, layout, "one")
    with Session(own) as session:
        first = answers(session, "one")
        build(workshop, tmp_path, layout, "one", "two")
        assert session.outdated == (layout in GRAPHS) and session.adapter_names() == ["one", "two"]
        if session.outdated:  # its graph does not hold that one
            with pytest.raises(BadInput, match="got adapters"):
                session.load_adapter("two")
        else:
            assert answers(session, "two") not in ([], first)
        assert answers(session, "one") == first
    with Session(own) as session, Session(folder) as wanted:
        assert answers(session, "two") == answers(wanted, "two")
