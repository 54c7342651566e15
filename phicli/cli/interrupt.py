"""Ctrl-C that stops an answer and not the program."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """While the block runs, the first Ctrl-C only makes the yielded function return True; a second one interrupts.

    genai's calls cannot be broken off, so whoever runs them asks the function between two of them.
    Outside the main thread, where Python delivers no signals, Ctrl-C is left as it is.
    """
    asked = threading.Event()

    def note_it(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, note_it)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
