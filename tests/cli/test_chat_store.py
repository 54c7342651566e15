"""Conversations that are kept: continued, private, bounded, and never in the way."""

import sqlite3

import pytest

from phicli.cli import chat_store
from phicli.cli.chat_file import Kept
from phicli.cli.chat_store import ChatStore

QUESTION = "What is the capital of France?"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "phicli" / "chats.db"


@pytest.fixture
def store(file, tmp_path):
    """store(name) -> a ChatStore for that model, with all its warnings in `said`."""

    def opened(name="model", **more):
        said = []
        made = ChatStore(tmp_path / name, said.append, **more)
        made.said = said
        return made

    return opened


def test_the_last_conversation_with_a_model_goes_on(store, file):
    first = store()
    first.add("1", "one", None, None)
    first.begin_anew()
    first.add("2", "two \ud800", "Be brief.", "travel")
    first.add("3", "three", "Be brief.", "cooking")
    store("other").add("x", "y", None, None)
    second = store()
    assert second.last() == Kept("Be brief.", "cooking", [("2", "two ?"), ("3", "three")])
    second.take_back()
    second.add("4", "four", None, None)
    assert store().load(2) == Kept(None, None, [("2", "two ?"), ("4", "four")])
    assert [(number, question) for number, _, question in store().recent()] == [(2, "2"), (1, "1")]
    assert store().load(99) is None and store("third").last() is None
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700


def test_the_oldest_turns_go_where_there_are_too_many_bytes(store, file, monkeypatch):
    monkeypatch.setattr(chat_store, "LARGEST", 400_000)
    writer = store()
    for n in range(30):
        writer.begin_anew() if n % 3 == 0 else None
        writer.add(f"{n} " + "x" * 20_000, "y" * 20_000, None, None)
    assert file.stat().st_size < 600_000
    numbers = [number for number, *_ in store().recent(100)]
    assert numbers[0] == 10 and 1 not in numbers and store().load(1) is None and not writer.said


@pytest.mark.parametrize("damage", ["junk", "cut", "foreign", "newer", "blob", "folder", "link", "locked", "read"])
def test_a_file_that_cannot_be_used_is_said_once_and_left_as_it_is(store, file, tmp_path, damage):
    store().add("1", "one" * 5000, None, None)
    holder = sqlite3.connect(file)
    if damage == "junk":
        file.write_bytes(b"no database" * 1000)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: -8000])
    elif damage == "foreign":
        holder.executescript("DROP TABLE turns; CREATE TABLE turns (x)")
    elif damage == "newer":
        holder.executescript("PRAGMA user_version = 7")
    elif damage == "blob":
        holder.executescript("UPDATE turns SET answer = x'ff'")
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif damage == "locked":
        holder.execute("BEGIN EXCLUSIVE")
    elif damage == "read":
        file.parent.chmod(0o777)
        (tmp_path / "state").chmod(0o777)
    before = file.read_bytes() if file.is_file() else None
    found = store()
    assert found.last() is None and found.recent() == []
    found.add("2", "two", None, None)
    found.take_back()
    assert len(found.said) == 1 and "conversations are not kept" in found.said[0] and not found.keeps
    assert (file.read_bytes() if file.is_file() else None) == before


def test_nothing_is_written_where_nothing_is_to_be_kept(store, file):
    quiet = store(keep=False)
    quiet.add("1", "one", None, None)
    assert quiet.last() is None and quiet.number is None and not file.parent.exists() and not quiet.said


def test_continue(cli, optimized, file):
    def chat(*flags):
        return cli("chat", "--root", optimized, "--max-new-tokens", "6", *flags)

    assert chat("Hello!", "--system", "Be brief.", "-a", "travel").code == 0
    follow = chat("-c", "Why?")
    rows = sqlite3.connect(file).execute("SELECT conversation, question FROM turns").fetchall()
    assert rows == [(1, "Hello!"), (1, "Why?")]
    assert chat("-c", "-p", "And?", "--json", "--no-adapter").code == 0
    found = sqlite3.connect(file).execute("SELECT system, adapter FROM conversations").fetchall()
    assert found == [("Be brief.", None)] and follow.out != chat("Why?", "-a", "travel").out
    before = file.read_bytes()
    assert chat("-p", "1").code == chat("2", "--no-log").code == 0 and file.read_bytes() == before
    assert chat("-c", "1", "--no-log").code == chat("-c", "1", "--compare").code == 2
    file.write_bytes(b"no database" * 1000)
    broken = chat("-c", "Why?")
    assert broken.code == 0 and broken.out and "conversations are not kept" in broken.err


def test_an_adapter_that_is_gone_is_named(cli, optimized, file, tmp_path):
    store = ChatStore(optimized / "onnx-ao", print)
    store.add("1", "one", None, "paris")
    done = cli("chat", "--root", optimized, "-c", "Why?", "--json")
    assert done.code == 0 and "the adapter paris is gone" in done.err and '"adapter": null' in done.out
