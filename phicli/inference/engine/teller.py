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
        """Return when all is done, or at once where this is the thread that does it."""
        self._given.put(None)
        if not self.here:
            self._thread.join()

    @property
    def here(self) -> bool:
        """Whether this is the thread that does the work."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        while work := self._given.get():
            work()
