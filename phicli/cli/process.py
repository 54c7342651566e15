"""The process around a command: its streams are there, signals end it cleanly, and how it ends. Imports little."""

import _thread
import codecs
import io
import os
import signal
import sys
import threading
import time
from typing import Any, TextIO

from phicli.cli.terminal import restore_terminal

SHELL = 128  # what a shell adds to the number of the signal that has ended a command
HELD = 1.0  # seconds in which more signals are the same wish: a key held down does not break off the cleaning up
INSISTS = 5.0  # seconds between two requests to end; cleaning up takes less
AFTER = 10.0  # seconds in which an error is taken for what a library makes of a signal's exception


class Terminated(SystemExit):
    """SIGTERM or SIGHUP has asked for the end."""


class _Signals:
    """What SIGINT, SIGTERM and SIGHUP do: at first and at last they end the process, meanwhile they raise."""

    def __init__(self) -> None:
        self.raising, self.number, self.at = False, signal.SIGINT, float("-inf")

    def __call__(self, number: int, frame: Any) -> None:
        if not self.raising:
            restore_terminal()
            os._exit(SHELL + number)
        if time.monotonic() - self.at > HELD:
            self.number, self.at = signal.Signals(number), time.monotonic()
            if number != signal.SIGINT and os.name != "nt":
                threading.Thread(target=self.insist, args=(number,), daemon=True).start()
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(SHELL + number)

    def insist(self, number: int) -> None:
        """Ask again while the process goes on: an event loop, say, may have dropped the exception at its start."""
        for _ in range(3):
            time.sleep(INSISTS)
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        time.sleep(INSISTS)
        restore_terminal()
        os._exit(SHELL + number)

    def install(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # not under nohup
                signal.signal(number, self)
        sys.unraisablehook = self.unraisable

    def unraisable(self, found: Any) -> None:
        """Raise again, a little later, what came up where Python drops exceptions: in a callback, a destructor."""
        if not issubclass(found.exc_type, KeyboardInterrupt | Terminated):
            sys.__unraisablehook__(found)
            return
        self.at = float("-inf")
        threading.Timer(0.05, self.again).start()

    def again(self) -> None:
        if os.name == "nt":
            _thread.interrupt_main(self.number)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, self.number)  # wakes it, if it waits for something


SIGNALS = _Signals()


def signalled() -> int | None:
    """The exit code for an error that has come up: of a signal if one was caught just before, else None."""
    return SHELL + SIGNALS.number if time.monotonic() - SIGNALS.at < AFTER else None


class _Patient(io.FileIO):
    """A file that goes on taking what its reader no longer takes."""

    gone = False

    def __init__(self, number: int, forgiven: type[OSError]):
        super().__init__(number, "w", closefd=number > 2)
        self.forgiven = forgiven

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except self.forgiven:
            self.gone = True
            return len(data)


def patient(number: int, like: TextIO, forgiven: type[OSError] = OSError) -> TextIO:
    """A text stream to a file descriptor on which such errors do not end the work: by default none does."""
    raw: Any = _Patient(number, forgiven)
    if os.name == "nt":  # a console there takes no bytes
        raw = open(number, "wb", 0, closefd=number > 2)  # noqa: SIM115
    lines = number != 1 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), like.encoding, "replace", line_buffering=lines)


def reader_gone() -> bool:
    """Whether nobody reads stdout any longer."""
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "gone", False)


def open_streams() -> None:
    """Open the null device for each standard stream that is closed, lest the next file opened should be taken for it.

    A reader of stdout or stderr who leaves does not end the work; a disk that is full does for the result on stdout.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    sys.stdout, sys.stderr = patient(1, sys.stdout, BrokenPipeError), patient(2, sys.stderr)


def _bytes_back(error: UnicodeError) -> tuple[str | bytes, int]:
    """Of what an encoding lacks: bytes that Python could not decode as they were, all else as "?"."""
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start : error.end]
    given = [ord(c) - 0xDC00 if 0xDC80 <= ord(c) <= 0xDCFF else ord("?") for c in found]
    return bytes(given), error.end


codecs.register_error("phicli", _bytes_back)
