"""The loop at the terminal: commands, messages, Ctrl-C."""

import json
import os
import shutil
import signal

import pytest

from phicli.cli import line_editor
from phicli.cli.chat_store import ChatStore
from phicli.cli.interrupt import interruptible
from phicli.cli.repl import Repl
from phicli.cli.slash import ALIASES, COMMANDS, Slash
from phicli.cli.talks import Talks
from phicli.config import ChatConfig


@pytest.fixture
def talks(optimized):
    with Talks(optimized / "onnx-ao", ChatConfig(max_new_tokens=12)) as talks:
        yield talks


def converse(talks, lines, on_piece=lambda piece: None, store=None):
    """Run a REPL over these lines; an exception among them is raised by `read`. Returns it with all that it said."""
    said, left = [], iter(lines)

    def read():
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    def ask(text):
        with interruptible() as stopped:
            said.append((text, talks.last.ask(text, on_piece, stopped)))

    slash = Slash(talks, store or ChatStore(talks.folder, said.append, keep=False), ask, said.append)
    Repl(slash, read, said.append, said.append).run()
    return slash, said


def test_messages_and_commands(talks):
    slash, said = converse(talks, [
        "Hello!", "/ADAPTER travel", "Hello!", "/adapters", "/adapter None", "//etc is a folder", "/system Be brief.",
        "/system", "/stats", "/Settings", " ", "/reset", "/stats", "/nonsense", "/?", "/bye", "never read"])
    answers = [a for a in said if isinstance(a, tuple)]
    assert [text for text, _ in answers] == ["Hello!", "Hello!", "/etc is a folder"]
    assert [a.adapter for _, a in answers] == [None, "travel", None]
    assert answers[0][1].text != answers[1][1].text
    notes = [note for note in said if isinstance(note, str)]
    assert notes.count("adapter: travel (on); there is cooking") == 2
    assert "adapter: none; there is cooking, travel" in notes
    assert notes.count("system message: Be brief.") == 2
    assert any(note.startswith("turns: 3, ") and "of 2048, adapter: none" in note for note in notes)
    assert any(note.startswith("turns: 0, tokens: 0 of") for note in notes)
    assert any("unknown command /nonsense" in note for note in notes)
    assert all(any(note.startswith(name) for note in notes) for name in COMMANDS)
    assert all(len(note) < 80 for note in notes)
    assert {"/adapter travel", "/adapter none", "/set top_k", "/bye"} <= {*slash.words()}
    assert {*ALIASES.values()} < {*COMMANDS}


def test_settings_change_and_come_back(talks):
    _, said = converse(talks, [
        "/set temperature 1.5", "/set MAX-NEW-TOKENS = 3", "/set stop User:", "Hello!", "/set", "/set temperature -1",
        "/set top_k many", "/set path /x", "/set temperature default", "/set stop default", "/set temperature"])
    assert talks.last.sampling.temperature == 0 and talks.last.stop == () and talks.last.max_new_tokens == 3
    assert [a.answer_tokens for _, a in (s for s in said if isinstance(s, tuple))] == [3]
    notes = [" ".join(note.split()) for note in said if isinstance(note, str)]
    assert {"temperature 1.5", "max_new_tokens 3", "stop 'User:'", "temperature 0", "stop none"} <= {*notes}
    wrong = [str(note) for note in said if isinstance(note, Exception)]
    assert ["at least 0" in wrong[0], "'many' is no int" in wrong[1], "cannot be set here" in wrong[2]] == [True] * 3


def test_retry_draws_another_answer_and_takes_the_first_one_back(talks):
    lines = ["/retry", "/set temperature 3", "/set top_p 1", "Where to?", "/retry", "/retry",
             "/set temperature 0", "/retry", "/retry"]
    _, said = converse(talks, lines)
    assert "nothing was asked yet" in str(said[0])
    answers = [a for a in said if isinstance(a, tuple)]
    assert [text for text, _ in answers] == ["Where to?"] * 5
    assert talks.last.turns == [("Where to?", answers[-1][1].text)]
    assert len({a.text for _, a in answers[:3]}) == 3 and answers[3][1].text == answers[4][1].text
    assert answers[1][1].cached_tokens > 0
    assert any("the same answer comes again" in note for note in said if isinstance(note, str))


def test_retry_after_a_question_that_was_stopped_asks_that_one(talks):
    slash, _ = converse(talks, ["Hello!"])
    talks.last.ask("Why?", stopped=lambda: True)
    slash.asked = "Why?"
    slash.run("/retry")
    assert [question for question, _ in talks.last.turns] == ["Hello!", "Why?"]


def test_saved_conversations_are_rows_to_train_on_and_come_back(talks, tmp_path):
    file = tmp_path / "a.json"
    _, said = converse(talks, ["/system Be brief.", "Hello!", "Why?", f"/save {file}", f"/save {file}"])
    turns = [*talks.last.turns]
    assert "is there already" in str(said[-1]) and file.stat().st_mode & 0o777 == 0o600
    roles = [message["role"] for message in json.loads(file.read_text())["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    _, said = converse(talks, ["/reset", "/system none", f"/load {file}"])
    assert talks.last.turns == turns and talks.last.system == "Be brief."
    assert "2 turns so far; the last:" in said and "> Why?" in said
    for wrong in ('{"messages": 1}', '{"messages": [{"role": "user", "content": "x"}]}', "[]", "{", '"\\ud800"'):
        file.write_text(wrong)
        _, said = converse(talks, [f"/load {file}"])
        assert str(file) in str(said[0]) and talks.last.turns == turns
    assert "no such file" in str(converse(talks, [f"/load {tmp_path / 'none'}"])[1][0])


def test_another_model_goes_on_with_the_conversation(optimized, two_graphs, tmp_path):
    models = tmp_path / "models"
    for name, root in (("one", optimized), ("two", two_graphs)):
        shutil.copytree(root / "onnx-ao", models / name / "onnx-ao")
    (models / "two" / "onnx-ao" / "adapters" / "cooking.onnx_adapter").unlink()
    with Talks(models / "one" / "onnx-ao", ChatConfig(max_new_tokens=8)) as talks:
        slash, said = converse(talks, ["Hello!", "/model", "/model paris", "/model TWO", "/model two", "Why?",
                                       f"/model {models / 'one'}", "/adapter travel", "And?"])
        assert "others:   two; /model NAME goes on with one" in said
        assert [("there are: one, two" in str(e)) for e in said if isinstance(e, Exception)] == [True, True]
        answers = [a.adapter for _, a in (s for s in said if isinstance(s, tuple))]
        assert answers == [None, "travel", "travel"] and [q for q, _ in talks.last.turns] == ["Hello!", "Why?", "And?"]
        shutil.copytree(models / "one", models / "bad")
        (models / "bad" / "onnx-ao" / "model.onnx").write_bytes(b"no graph")
        _, said = converse(talks, ["/model bad", "Where?"])
        assert isinstance(said[0], Exception) and talks.folder == models / "one" / "onnx-ao"
        assert said[1][1].adapter == "travel" and "/model bad" in slash.words()


def test_errors_are_shown_and_the_loop_goes_on(talks):
    _, said = converse(talks, ["/adapter paris", "Please! " * 2000, KeyboardInterrupt(), "Hello!"])
    assert "there are: cooking, travel" in str(said[0])
    assert "the model's context is 2048" in str(said[1])
    assert said[2] == "Ctrl-D leaves"
    assert said[3][1].finish_reason in ("stop", "length")


def test_control_c_stops_the_answer_and_not_the_program(talks):
    _, said = converse(talks, ["Hello!", "Hello again!"], lambda piece: os.kill(os.getpid(), signal.SIGINT))
    assert [a.finish_reason for _, a in said] == ["interrupted", "interrupted"]
    assert all(1 <= a.answer_tokens < 12 and a.text for _, a in said)


@pytest.mark.parametrize(("typed", "sent"), [
    ('"""one\ntwo"""', "one\ntwo"), ('"""\none\n"""', "one"), ('/system """a\nb"""', "/system a\nb"),
    ('"""/etc"""', "//etc"), ('"""a""" b', '"""a""" b'), ('what is """?', 'what is """?')])
def test_three_quotes_hold_several_lines(typed, sent):
    assert line_editor._unquoted(typed) == sent and not line_editor._open_quotes(typed)
    assert line_editor._open_quotes('/system """a\nb') and line_editor._open_quotes('"""')


def test_a_second_control_c_interrupts_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as stopped:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_history_is_kept_for_its_owner_alone_and_given_up_quietly(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    line_editor._history().append_string("Where to?")
    file = tmp_path / "phicli" / "chat_history"
    assert "Where to?" in file.read_text() and file.stat().st_mode & 0o777 == 0o600
    assert list(line_editor._history().load_history_strings()) == ["Where to?"]
    (tmp_path / "taken").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "taken"))
    line_editor._history().append_string("Where to?")
