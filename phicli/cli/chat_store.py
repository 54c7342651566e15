"""Conversations that are kept for `phicli chat --continue`: an SQLite file that only its owner can read."""

import functools
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phicli.artifacts.private import private_folder
from phicli.cli.chat_file import Kept
from phicli.cli.line_editor import state_folder
from phicli.errors import BadInput, PhicliError

LARGEST = 64 << 20  # bytes of the file; then the oldest turns go
LONGEST = 1000  # turns that are read again; no context holds as many
PATIENCE = 0.5  # seconds for another process that writes
VERSION = 1
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, folder TEXT, system TEXT, adapter TEXT);
CREATE TABLE IF NOT EXISTS turns (id INTEGER PRIMARY KEY, conversation INTEGER, question TEXT, answer TEXT, at REAL);
CREATE INDEX IF NOT EXISTS turns_of ON turns (conversation);
CREATE INDEX IF NOT EXISTS conversations_of ON conversations (folder);
PRAGMA user_version = {VERSION};
"""


def _unless_faulty(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method in one transaction; None where nothing is kept, or can be kept no longer."""

    @functools.wraps(method)
    def run(self: "ChatStore", *given: Any) -> Any:
        import sqlite3

        try:
            if self._db is not None:
                with self._db:
                    return method(self, *given)
        except (sqlite3.Error, ValueError) as e:
            self._give_up(e)
        return None

    return run


class ChatStore:
    """The file, and the conversation in it that goes on.

    Whatever is wrong with the file is said once; from then on nothing is kept, and nothing else happens. What is in
    its place is never replaced.

    Args:
        folder: the model's; a conversation is continued with the model that it was had with.
        warn: shows one line. keep: False reads and writes nothing.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], keep: bool = True):
        self._warn, self._db = warn, None  # type: Any, Any
        self.move_to(folder)
        self.number: int | None = None  # of the conversation that goes on; None before its first answer
        if keep:
            try:
                import sqlite3  # not every Python has it

                self._db = _opened(state_folder() / "chats.db", sqlite3)
            except (ImportError, OSError, RuntimeError, PhicliError, sqlite3.Error) as e:  # RuntimeError: no home
                self._give_up(e)

    def _give_up(self, error: Exception) -> None:
        self._db = None
        self._warn(f"conversations are not kept: {' '.join(str(error).split())}")

    @property
    def keeps(self) -> bool:
        return self._db is not None

    @_unless_faulty
    def add(self, question: str, answer: str, system: str | None, adapter: str | None) -> None:
        """Keep one more turn; the first one after `begin_anew` begins a conversation."""
        if self.number is None:
            self.number = self._run("INSERT INTO conversations DEFAULT VALUES").lastrowid
        self._run("UPDATE conversations SET folder = ?, system = ?, adapter = ? WHERE id = ?", self._folder,
                  _clean(system), adapter, self.number)
        self._run("INSERT INTO turns (conversation, question, answer, at) VALUES (?, ?, ?, ?)", self.number,
                  _clean(question), _clean(answer), time.time())
        while self._bytes() > LARGEST:
            self._run("DELETE FROM turns WHERE id = (SELECT min(id) FROM turns)")
            self._run("DELETE FROM conversations WHERE id NOT IN (SELECT conversation FROM turns)")

    @_unless_faulty
    def take_back(self) -> None:
        """Forget the last turn of this conversation."""
        self._run("DELETE FROM turns WHERE id = (SELECT max(id) FROM turns WHERE conversation = ?)", self.number)

    def begin_anew(self) -> None:
        """What comes next is another conversation."""
        self.number = None

    def move_to(self, folder: Path) -> None:
        """The conversation goes on with another model."""
        self._folder = _clean(str(folder.resolve()))

    @_unless_faulty
    def last(self) -> Kept | None:
        """The conversation with this model that was the last to get an answer; it goes on. None: there is none."""
        found = self._run("SELECT conversation FROM turns JOIN conversations ON conversation = conversations.id "
                          "WHERE folder = ? ORDER BY turns.id DESC LIMIT 1", self._folder).fetchone()
        return self.load(found[0]) if found else None

    @_unless_faulty
    def load(self, number: int) -> Kept | None:
        """A conversation, which goes on. None: there is none with this number."""
        found = self._run("SELECT system, adapter FROM conversations WHERE id = ?", number).fetchone()
        rows = self._run("SELECT question, answer FROM turns WHERE conversation = ? ORDER BY id DESC LIMIT ?", number,
                         LONGEST).fetchall()
        if not all(isinstance(text, str) for row in [*rows, filter(None, found or ())] for text in row):
            raise ValueError("what is in its file are no texts")
        self.number = number if found else self.number
        return Kept(found[0], found[1], rows[::-1]) if found else None

    def recent(self, count: int = 10) -> list[tuple[int, float, str]]:
        """Number, time of the last answer and first question of the last conversations with this model."""
        return self._recent(count) or []

    @_unless_faulty
    def _recent(self, count: int) -> list[tuple[int, float, str]]:
        return self._run("SELECT conversation, max(at), (SELECT substr(question, 1, 200) FROM turns AS first WHERE "
                         "first.conversation = turns.conversation ORDER BY id LIMIT 1) FROM turns JOIN conversations "
                         "ON conversation = conversations.id WHERE folder = ? GROUP BY conversation "
                         "ORDER BY max(turns.id) DESC LIMIT ?", self._folder, count).fetchall()

    def _run(self, statement: str, *values: Any) -> Any:
        return self._db.execute(statement, values)

    def _bytes(self) -> int:
        pages, free, page = (self._run(f"PRAGMA {name}").fetchone()[0]
                             for name in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * page


def _opened(path: Path, sqlite3: Any) -> Any:
    """The database, made if it is not there. Raises what the class catches."""
    private_folder(path.parent)
    number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o600)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise BadInput("not a regular file", where=path)
    finally:
        os.close(number)
    db = sqlite3.connect(path, PATIENCE)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise BadInput("was written by another version of phicli", where=path)
        if version == 0:
            db.executescript(SCHEMA)
    except sqlite3.Error as e:
        raise BadInput(str(e), where=path) from None
    return db


def _clean(text: str | None) -> str | None:
    """The text without halves of characters, which a terminal without UTF-8 may give."""
    return text and text.encode("utf-8", "replace").decode()
