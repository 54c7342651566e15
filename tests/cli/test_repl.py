"""The loop at the terminal: commands, messages, Ctrl-C."""

import os
import signal

import pytest

from phicli.cli import line_editor
from phicli.cli.interrupt import interruptible
from phicli.cli.repl import COMMANDS, Repl
from phicli.inference.conversation import Conversation
from phicli.inference.session import Session


@pytest.fixture(scope="module")
def session(optimized):
    return Session(optimized / "onnx-ao")


def converse(session, lines, on_piece=lambda piece: None, **options):
    """Run a REPL over these lines; an exception among them is raised by `read`. Returns it with all that it said."""
    talk = Conversation(session, max_new_tokens=12, **options)
    notes, left = [], iter(lines)

    def read():
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    def answer(text, stopped):
        notes.append((text, talk.ask(text, on_piece, stopped)))

    repl = Repl([talk], answer, talk.use_adapter, read, notes.append, notes.append)
    repl.run()
    return repl, notes


def test_messages_and_commands(session):
    repl, said = converse(session, [
        "Hello!", "/adapter travel", "Hello!", "/adapters", "/adapter", "//etc is a folder", "/system Be brief.",
        "/stats", "/settings", " ", "/reset", "/stats", "/nonsense", "/help", "/exit", "never read"])
    answers = [a for a in said if isinstance(a, tuple)]
    assert [text for text, _ in answers] == ["Hello!", "Hello!", "/etc is a folder"]
    assert [a.adapter for _, a in answers] == [None, "travel", None]
    assert answers[0][1].text != answers[1][1].text
    notes = [note for note in said if isinstance(note, str)]
    assert "adapter: travel" in notes and "* travel" in notes and "  cooking" in notes and "adapter: none" in notes
    assert any(note.startswith("turns: 3, ") and "of 2048, adapter: none" in note for note in notes)
    assert any(note.startswith("turns: 0, tokens: 0 of") for note in notes)
    assert "sampling: greedy" in notes and any(note.endswith("at most 12 tokens, and ends before: no text")
                                               for note in notes)
    assert any("unknown command /nonsense" in note for note in notes)
    assert all(any(note.startswith(name) for note in notes) for name in COMMANDS)
    assert repl.talk.system == "Be brief."
    assert "/adapter travel" in repl.words()


def test_errors_are_shown_and_the_loop_goes_on(session):
    _, said = converse(session, ["/adapter paris", "Please! " * 2000, KeyboardInterrupt(), "Hello!"])
    assert "there are: cooking, travel" in str(said[0])
    assert "the model's context is 2048" in str(said[1])
    assert said[2] == "Ctrl-D leaves"
    assert said[3][1].finish_reason in ("stop", "length")


def test_control_c_stops_the_answer_and_not_the_program(session):
    _, said = converse(session, ["Hello!", "Hello again!"], lambda piece: os.kill(os.getpid(), signal.SIGINT))
    assert [a.finish_reason for _, a in said] == ["interrupted", "interrupted"]
    assert all(1 <= a.answer_tokens < 12 and a.text for _, a in said)


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
