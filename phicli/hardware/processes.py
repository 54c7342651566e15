"""Work spread over processes of our own, which end when the one that has started them does, whatever ends it."""

import gc
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

from phicli.errors import Missing

Task = TypeVar("Task")
Result = TypeVar("Result")
GARBAGE = 100_000  # new objects between two collections; many small ones that live shortly need no more
AHEAD = 2  # tasks a process: one that it works on, one that is ready


def spread(here: Callable[[Task], Result], make: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task],
           processes: int, alone: int = 0) -> Generator[Result, None, None]:
    """What a function gives for each task, in the order of the tasks; close the iterator to end the processes.

    A program's own main module is not imported in them, so that it needs no guard.

    Args:
        here: the function. make: gives it, once in each process; make, tasks and results are pickled.
        alone: so many first tasks are done here; the processes start when there are more.

    Raises:
        Missing: a process was ended from outside. Whatever the function raises.
    """
    rest = iter(tasks)
    for task in rest if processes < 2 else islice(rest, alone):
        yield here(task)
    first = next(rest, None)
    if first is None:
        return
    pool = _Pool(make, processes)
    try:
        yield from pool.map(first, rest)
    finally:
        pool.close()


class _Pool:
    def __init__(self, make: Callable[[], Any], processes: int):
        self.threads = ThreadPoolExecutor(processes)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        begin = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _serve; _serve()"
        for _ in range(processes):
            # A session of its own: Ctrl-C reaches this process only, which ends the others.
            process = subprocess.Popen([sys.executable, "-c", begin], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       start_new_session=True)
            self.processes.append(process)
            self.threads.submit(self._begin, process, make)

    def map(self, first: Any, rest: Iterator[Any]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque([self.threads.submit(self._exchange, first)])
        for task in rest:
            waiting.append(self.threads.submit(self._exchange, task))
            if len(waiting) >= AHEAD * len(self.processes):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            with suppress(OSError):  # what could not be sent
                process.__exit__(None, None, None)

    def _begin(self, process: "subprocess.Popen[bytes]", make: Callable[[], Any]) -> None:
        with suppress(OSError):  # it has ended: who gives it a task will see
            self._send(process, make)
        self.idle.put(process)

    def _exchange(self, task: Any) -> Any:
        process = self.idle.get()
        try:
            self._send(process, task)
            assert process.stdout
            fine, found = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            process.kill()
            raise Missing(f"a process that worked for this one was ended ({process.wait()})",
                          hint="was there too little memory?") from None
        finally:
            self.idle.put(process)
        if not fine:
            raise found
        return found

    def _send(self, process: "subprocess.Popen[bytes]", task: Any) -> None:
        assert process.stdin
        pickle.dump(task, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()


def _serve() -> None:
    """What such a process does until nobody is there to ask it."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no result
    function: Any = None
    try:
        while True:
            task = pickle.load(sys.stdin.buffer)
            if function is None:
                function = task()
                gc.freeze()
                gc.set_threshold(GARBAGE)
                continue
            try:
                answer = pickle.dumps((True, function(task)), pickle.HIGHEST_PROTOCOL)
            except BaseException as e:
                answer = pickle.dumps((False, e))
            results.write(answer)
            results.flush()
    except (EOFError, OSError):
        os._exit(0)
