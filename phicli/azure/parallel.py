"""Several transfers at once, in threads that an error or Ctrl-C leaves behind at once."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_CHECK = 0.2  # seconds; waits without a limit cannot be interrupted on Windows
_ENDED = object()


def completed(tasks: Iterable[Callable[[], T]], workers: int) -> Iterator[T]:
    """Run tasks in threads; yields their results in the calling thread, as they come.

    The first exception of a task is raised here and no further task begins. The threads are daemons: a blocked
    socket keeps neither an error nor Ctrl-C waiting, which an executor from concurrent.futures would.
    """
    todo, taking = iter(tasks), threading.Lock()
    results: queue.Queue = queue.Queue()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                with taking:
                    task = next(todo, None)
                if task is None:
                    break
                results.put((task(), None))
            except BaseException as e:
                results.put((None, e))
        results.put((_ENDED, None))

    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    running = workers
    try:
        while running:
            try:
                value, error = results.get(timeout=_CHECK)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if value is _ENDED:
                running -= 1
            else:
                yield value
    finally:
        stop.set()
