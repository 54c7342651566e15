"""What libraries print, Python's and C++'s, sent to a log."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from phicli.cli import process


@contextlib.contextmanager
def diverted(log: TextIO) -> Iterator[TextIO]:
    """Point stdout and stderr, also those of C++ code, at the log; yield the stream that was stderr."""
    stdout, stderr = sys.stdout, sys.stderr
    try:
        real = (stdout.fileno(), stderr.fileno()) == (1, 2)
    except (OSError, ValueError, AttributeError):
        real = False  # a test's capture: only Python's own streams can be diverted
    with contextlib.ExitStack() as undo:
        terminal = stderr
        if real:
            stdout.flush()
            stderr.flush()
            saved = [os.dup(1), os.dup(2)]
            terminal = undo.enter_context(process.patient(os.dup(2), stderr))
            undo.callback(_restore, saved)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        undo.enter_context(contextlib.redirect_stdout(log))
        undo.enter_context(contextlib.redirect_stderr(log))
        yield terminal


def _restore(saved: list[int]) -> None:
    for number, copy in enumerate(saved, start=1):
        os.dup2(copy, number)
        os.close(copy)
