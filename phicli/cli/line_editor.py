"""Reading a message at the terminal: line editing, several lines, history."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts.private import private_folder
from phicli.cli.printable import printable
from phicli.errors import Missing

PROMPT, CONTINUED = "> ", ". "


def line_reader(words: Callable[[], Sequence[str]]) -> Callable[[], str]:
    """A function that reads one message from the terminal; it raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C.

    Enter sends; Alt-Enter begins a new line; a pasted text may have several.

    Args:
        words: what Tab completes at the beginning of a line.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    class Commands(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Any:
            typed = document.text
            if typed.startswith("/"):
                yield from (Completion(word, start_position=-len(typed), display=printable(word))
                            for word in words() if word.startswith(typed))

    keys = KeyBindings()
    for send in ("enter", "c-j"):  # the latter is what Enter becomes when typed ahead, while an answer streams
        keys.add(send)(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    session: Any = PromptSession(
        multiline=True, key_bindings=keys, history=_history(), completer=Commands(), complete_while_typing=False,
        prompt_continuation=lambda width, line, wrapped: "" if wrapped else CONTINUED,
        output=create_output(stdout=sys.stderr),  # stdout is for answers
    )

    def read() -> str:
        try:
            return session.prompt(PROMPT)
        except SystemExit:  # of a signal, in the middle of the line: the modes of the terminal are still the prompt's
            session.app.renderer.reset()
            session.app.output.write_raw("\n")
            session.app.output.flush()
            raise

    return read


def history_file() -> Path:
    """Where messages are remembered: the user's state folder."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        base = state if state.is_absolute() else Path.home() / ".local" / "state"
    return base / "phicli" / "chat_history"


def _history() -> Any:
    """The history in its file, which is its owner's only; in memory where it cannot be written or others could."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    with contextlib.suppress(OSError, RuntimeError, Missing):  # RuntimeError: no home folder
        path = history_file()
        private_folder(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        return FileHistory(str(path))
    return InMemoryHistory()
