"""Reading a message at the terminal: line editing, several lines, history."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts.private import private_folder
from phicli.errors import Missing
from phicli.printable import printable

PROMPT, CONTINUED = "> ", ". "
QUOTED = re.compile(r'(/\S+\s+)?"""(.*)', re.DOTALL)  # as in ollama: Enter begins new lines until the next three quotes


def line_reader(words: Callable[[], Sequence[str]], keep: bool = True) -> Callable[[], str]:
    """A function that reads one message from the terminal; it raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C.

    Enter sends; Alt-Enter begins a new line, and so does Enter between three quotes and the next three; a pasted text
    may have several lines. Ctrl-R looks for an earlier message.

    Args:
        words: what Tab completes at the beginning of a line, word by word. keep: whether messages are remembered.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.output import create_output

    session: Any = PromptSession(
        multiline=True, key_bindings=_keys(), history=_history() if keep else InMemoryHistory(),
        completer=_commands(words), complete_while_typing=False, search_ignore_case=True,
        prompt_continuation=lambda width, line, wrapped: "" if wrapped else CONTINUED,
        output=create_output(stdout=sys.stderr),  # stdout is for answers
    )

    def begin() -> None:
        _end_on_signals(session.app)

    def read() -> str:
        try:
            return _unquoted(session.prompt(PROMPT, pre_run=begin, set_exception_handler=False))
        except SystemExit:  # of a signal, in the middle of the line: the modes of the terminal are still the prompt's
            session.app.renderer.reset()
            session.app.output.write_raw("\n")
            session.app.output.flush()
            raise

    return read


def _keys() -> Any:
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.key_binding import KeyBindings

    def enter(event: Any) -> None:
        if _open_quotes(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    keys = KeyBindings()
    for send in ("enter", "c-j"):  # the latter is what Enter becomes when typed before the modes below are set
        keys.add(send, filter=~is_searching)(enter)
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    return keys


def _commands(words: Callable[[], Sequence[str]]) -> Any:
    """Completes what begins with a slash, word by word."""
    from prompt_toolkit.completion import Completer, Completion

    class Commands(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Any:
            typed = document.text
            if typed.startswith("/"):
                yield from (Completion(word, start_position=-len(typed), display=printable(word)) for word in words()
                            if word.lower().startswith(typed.lower()) and word.count(" ") == typed.count(" "))

    return Commands()


def _end_on_signals(app: Any) -> None:
    """A signal that is raised where the running loop drops what comes up ends the prompt too.

    prompt_toolkit's own handler would show it, and wait for Enter.
    """
    import asyncio

    def handle(loop: Any, context: dict[str, Any]) -> None:
        if isinstance(found := context.get("exception"), KeyboardInterrupt | SystemExit):
            with contextlib.suppress(Exception):  # it is ending already
                app.exit(exception=found)
        else:
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(handle)


def _open_quotes(text: str) -> bool:
    found = QUOTED.fullmatch(text)
    return found is not None and '"""' not in found[2]


def _unquoted(text: str) -> str:
    """The message without the three quotes around it, or around what follows a command; it never becomes a command."""
    found = QUOTED.fullmatch(text)
    quoted = found and re.fullmatch(r'\n*(.*?)\n*"""\s*', found[2], re.DOTALL)
    if not found or not quoted:
        return text
    return found[1] + quoted[1] if found[1] else "/" * quoted[1].startswith("/") + quoted[1]


def state_folder() -> Path:
    """Where things are remembered from one run to the next. Raises RuntimeError: the user has no home folder."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        base = state if state.is_absolute() else Path.home() / ".local" / "state"
    return base / "phicli"


def history_file() -> Path:
    """Where messages are remembered. Raises as `state_folder`."""
    return state_folder() / "chat_history"


def _history() -> Any:
    """The history in its file, which is its owner's only; in memory where it cannot be written or others could."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    with contextlib.suppress(OSError, RuntimeError, Missing):  # RuntimeError: no home folder
        path = history_file()
        private_folder(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        return FileHistory(str(path))
    return InMemoryHistory()
