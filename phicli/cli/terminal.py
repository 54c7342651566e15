"""The terminal's modes, which a line editor changes: given back however the process ends."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

USUAL = b"\x1b[?2004l\x1b[?25h"  # pasted text is not marked, the cursor is seen
_before: list[Any] = []


def remember_terminal() -> None:
    """Note the modes of the terminal on stdin, if it is one."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import termios

        if os.isatty(0):
            _before[:] = termios.tcgetattr(0)


def restore_terminal() -> None:
    """Give back what `remember_terminal` noted, where it has changed; also when an editor was broken off half-way."""
    if not _before or sys.platform == "win32":
        return
    import termios

    with contextlib.suppress(termios.error, OSError):  # the terminal is gone
        if os.tcgetpgrp(0) == os.getpgrp() and termios.tcgetattr(0) != _before:  # in the background it would stop us
            termios.tcsetattr(0, termios.TCSANOW, _before)
            os.write(0, USUAL)


@contextlib.contextmanager
def unseen_keys() -> Iterator[None]:
    """Keys that are typed while nobody asks for them are not shown, and wait as they are for who asks next.

    Ctrl-C interrupts as ever.
    """
    if sys.platform == "win32" or not os.isatty(0) or _in_background():
        yield
        return
    import termios

    before = termios.tcgetattr(0)
    modes = termios.tcgetattr(0)
    modes[0] &= ~termios.ICRNL
    modes[3] &= ~(termios.ECHO | termios.ICANON)
    modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(0, termios.TCSANOW, modes)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(0, termios.TCSANOW, before)


def _in_background() -> bool:
    """Whether setting the terminal's modes would stop us."""
    try:
        return os.tcgetpgrp(0) != os.getpgrp()
    except OSError:  # it is not the terminal that controls us
        return False
