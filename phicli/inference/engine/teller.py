"""Doing things in the order in which they are given: at once, or in a thread while a GPU runs the next step."""

import queue
import threading
from collections.abc import Callable

Work = Callable[[], None]


def at_once(work: Work) -> None:
    work()


class Teller:
    """A thread that does what it is given, until it is closed. Work must not raise."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="phicli-teller", daemon=True)
        self._thread.start()

    def __call__(self, work: Work) -> None:
        self._given.put(work)

    def close(self) -> None:
        """Return when all is done."""
        self._given.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while work := self._given.get():
            work()
