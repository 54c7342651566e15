"""The console script: the process made ready, then the command."""

import atexit
import contextlib
import os
import sys

from phicli.cli import process, quick_imports
from phicli.cli.terminal import remember_terminal, restore_terminal


def entry() -> None:
    """The console script. Leaves out Python's taking apart of what was imported, a second for torch and transformers.

    Threads and libraries end as always: what is registered first for the end is called last. After a signal nobody
    waits for them.
    """
    process.open_streams()
    remember_terminal()
    process.SIGNALS.install()
    quick_imports.install()
    codes: list[int] = []
    atexit.register(lambda: _leave(codes[0]) if codes and not (sys.gettrace() or sys.getprofile()) else None)
    from phicli.cli import main as cli

    try:
        process.SIGNALS.raising = True
        codes.append(cli.main())
    except (KeyboardInterrupt, process.Terminated):
        codes.append(process.SHELL + process.SIGNALS.number)
    finally:
        process.SIGNALS.raising = False
    if codes and codes[0] > process.SHELL:
        _leave(codes[0])
    sys.exit(codes[0])


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    restore_terminal()
    os._exit(code)
