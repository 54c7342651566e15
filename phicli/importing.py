"""The libraries a step computes with, imported beside its first work, which is hashing its inputs."""

import atexit
import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module


@contextlib.contextmanager
def imports(
    *modules: str, at_once: bool, beside: Callable[[threading.Event], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Import modules in this order in the background while the block runs, and without looking for garbage meanwhile.

    Importing makes a million objects that stay; looking through them again and again takes a tenth of the time.

    Args:
        at_once: begin now, since they will surely be needed; else when the block asks for them.
        beside: something else to do in the background, in parts between which it looks at the event: an error or
            Ctrl-C has ended the block if it is set. What it raises is dropped.

    Yields:
        a function that returns when all is done, and raises what importing raises.
    """
    unwanted = threading.Event()
    new, collects = any(name not in sys.modules for name in modules), gc.isenabled()

    def load() -> None:
        for name in modules:
            if not unwanted.is_set():
                import_module(name)

    def run(work: Callable[[], None]) -> None:
        with contextlib.suppress(Exception):  # whoever needs the module meets the error again
            work()

    works = [load] + ([lambda: beside(unwanted)] if beside else [])
    threads = [threading.Thread(target=run, args=(work,)) for work in works if new]

    def begin() -> None:
        for thread in threads:
            thread.start()

    def ready() -> None:
        if not at_once:
            begin()
        for thread in threads:
            thread.join()
        load()
        if new:
            gc.freeze()
            atexit.register(gc.unfreeze)  # some libraries complain of what they find at the end
            restore()

    def restore() -> None:
        if collects:
            gc.enable()

    if new:
        gc.disable()
    if at_once:
        begin()
    try:
        yield ready
    finally:
        unwanted.set()
        restore()
