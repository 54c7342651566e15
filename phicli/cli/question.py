"""The question of `phicli chat`: an argument, --prompt, stdin, or an argument about what is on stdin."""

import os
import stat
import sys

from phicli.cli import console
from phicli.errors import BadInput, UsageError

LONGEST = 1 << 20  # bytes of stdin


def question_of(given: str | None, prompt: str | None) -> str | None:
    """The one question to answer, or None for a conversation at the terminal.

    Args:
        given: the argument. prompt: of --prompt, with which stdin is left alone.

    Raises:
        UsageError: it is empty. BadInput: stdin is too long, or no UTF-8.
    """
    text = given if prompt is None else prompt
    if text is not None:
        text = console.typed(text)
        if prompt is None and _piped_in() and (more := _read_stdin()).strip():
            text = f"{text}\n\n{more}"
    elif sys.stdin is not None and sys.stdin.isatty():
        return None
    else:
        text = _read_stdin()
    if not text.strip():
        raise UsageError("the prompt is empty", hint='phicli chat "TEXT"', also=["text on stdin"])
    return text


def _piped_in() -> bool:
    """Whether stdin is a pipe or a file, not a terminal or the null device."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_stdin() -> str:
    try:
        read = sys.stdin.buffer.read(LONGEST + 1) if sys.stdin else b""
        if len(read) > LONGEST:
            raise BadInput(f"more than {LONGEST >> 20} MB, which no model's context holds", where="stdin")
        return read.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as e:
        raise BadInput(f"not UTF-8: {e}", where="stdin") from None
