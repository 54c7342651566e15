"""Several processes of this machine that do one piece of work together and end together, whatever ends one of them."""

import _thread
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from phicli.errors import Missing
from phicli.hardware.devices import environments
from phicli.hardware.interrupt import ctrl_c
from phicli.progress import SILENT, Progress, Task

GRACE_ALONE = 60.0  # seconds for a process to end what it is at when the one that has started it is gone
GRACE = 1.0  # seconds in which the process that failed first is told from those that failed for it
LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


class Work(Protocol):
    """What each process does. Its result is that of the first one."""

    def __call__(self, number: int, progress: Progress) -> Any: ...


def on_gpus(work: Callable[..., Any], count: int, device: str, progress: Progress = SILENT) -> Any:
    """Do a work on so many GPUs, in a process for each, as `together` does it.

    Args:
        work: as `Work`, with the path of a scratch folder that all share before its other arguments.
    """
    with tempfile.TemporaryDirectory(prefix="phicli-gpus-") as scratch:
        return together(partial(work, Path(scratch)), environments(count, device), progress)


def together(work: Work, environments: Sequence[Mapping[str, str]], progress: Progress = SILENT) -> Any:
    """Do a work in as many processes as there are environments, and return what the first of them returns.

    A program's own main module is not imported in them, so that it needs no guard. Ctrl-C interrupts all of them, and
    each may end what it is at; a second one ends them at once.

    Args:
        work: pickled, as is what it returns. environments: variables of each, beside those of this process. progress:
            is told what the first process says.

    Raises:
        Missing: a process was ended from outside. Whatever the work raises.
    """
    team = _Team(work, environments)
    try:
        return team.follow(_Told(progress))
    finally:
        team.end()


class _Team:
    def __init__(self, work: Work, environments: Sequence[Mapping[str, str]]):
        self.heard: SimpleQueue[tuple[int, str, Any]] = SimpleQueue()
        self.results: dict[int, Any] = {}
        self.errors: dict[int, BaseException] = {}
        begin = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _serve; _serve()"
        self.processes = [
            subprocess.Popen([sys.executable, "-c", begin], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             start_new_session=True, env={**LOCAL, **os.environ, **own})
            for own in environments
        ]
        for number, process in enumerate(self.processes):
            threading.Thread(target=self._listen, args=(number, process, pickle.dumps((work, number))),
                             daemon=True).start()

    def _listen(self, number: int, process: "subprocess.Popen[bytes]", order: bytes) -> None:
        assert process.stdin and process.stdout
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            process.stdin.write(order)
            process.stdin.flush()  # it stays open: its end tells the process that this one is gone
            while True:
                kind, value = pickle.load(process.stdout)
                self.heard.put((number, kind, value))
        self.heard.put((number, "ended", process.wait()))

    def follow(self, told: "_Told") -> Any:
        """Hear all until every process has ended, or one of them by a fault."""
        asked, over = False, float("inf")
        with ctrl_c() as stop:
            while len(self.results) + len(self.errors) < len(self.processes) and time.monotonic() < over:
                if stop.is_set() and not asked:
                    asked = True
                    for process in self.processes:
                        process.send_signal(signal.SIGINT)
                with suppress(Empty):
                    self._take(*self.heard.get(timeout=0.1), told)
                if any(not isinstance(error, KeyboardInterrupt) for error in self.errors.values()):
                    over = min(over, time.monotonic() + GRACE)
        if self.errors:
            raise min(self.errors.items(), key=_importance)[1]
        return self.results[0]

    def _take(self, number: int, kind: str, value: Any, told: "_Told") -> None:
        if kind == "told":
            told.hear(*value)
        elif kind == "done":
            self.results[number] = value
        elif kind == "failed":
            self.errors[number] = value
        elif number not in self.results and number not in self.errors:
            self.errors[number] = Missing(
                f"process {number + 1} of {len(self.processes)} was ended from outside ({value}), and the rest with it",
                hint="was there too little memory? the same command goes on from the last checkpoint, if there is one")

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


def _importance(entry: tuple[int, BaseException]) -> tuple[int, int]:
    """What has ended all of them comes before what that has led to."""
    number, error = entry
    return (0 if isinstance(error, Missing) else 1 if not isinstance(error, RuntimeError) else 2, number)


class _Told:
    """Passes on to a progress what the first process says to its own."""

    def __init__(self, progress: Progress):
        self.progress, self.tasks = progress, dict[int, tuple[Any, Task]]()

    def hear(self, what: str, *given: Any) -> None:
        if what == "begin":
            task = self.progress.task(*given[1:])
            self.tasks[given[0]] = task, task.__enter__()
        elif what == "advance":
            self.tasks[given[0]][1].advance(given[1], **given[2])
        elif what == "end":
            self.tasks.pop(given[0])[0].__exit__(None, None, None)
        else:
            getattr(self.progress, what)(*given)


class _Teller:
    """The progress of the first process. What nobody hears any more is left out."""

    def __init__(self, say: Callable[[str, Any], None]):
        self.say = say

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        self.say("told", ("begin", id(title), title, total, unit))
        try:
            yield _TellerTask(self.say, id(title))
        finally:
            self.say("told", ("end", id(title)))

    def note(self, text: str) -> None:
        self.say("told", ("note", text))

    def warn(self, text: str) -> None:
        self.say("told", ("warn", text))


class _TellerTask:
    def __init__(self, say: Callable[[str, Any], None], number: int):
        self.say, self.number = say, number

    def advance(self, n: float = 1, **figures: Any) -> None:
        self.say("told", ("advance", self.number, n, figures))


def _serve() -> None:
    """What such a process does."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no message

    def say(kind: str, value: Any) -> None:
        with suppress(OSError):
            out.write(pickle.dumps((kind, value)))
            out.flush()

    def until_alone() -> None:
        sys.stdin.buffer.read(1)
        _thread.interrupt_main()
        time.sleep(GRACE_ALONE)
        os._exit(1)

    try:
        work, number = pickle.load(sys.stdin.buffer)
        threading.Thread(target=until_alone, daemon=True).start()
        found = work(number=number, progress=_Teller(say) if number == 0 else SILENT)
        say("done", found if number == 0 else None)
    except BaseException as e:
        say("failed", e if _can_be_sent(e) else RuntimeError(f"{type(e).__name__}: {e}"))
    os._exit(0)  # threads of libraries may be waiting for processes that are gone


def _can_be_sent(error: BaseException) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))
    except Exception:
        return False
