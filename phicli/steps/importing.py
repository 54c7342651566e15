"""The libraries a step computes with, imported beside its first work, which is hashing its inputs."""

import atexit
import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module


class Imports:
    """How far the imports are, for work beside them. over: set when nobody needs any of it any longer."""

    def __init__(self, modules: tuple[str, ...]):
        self.over = threading.Event()
        self.tried = {name: threading.Event() for name in modules}

    def reached(self, module: str) -> bool:
        """Wait until a module is imported, or has failed to be; whether somebody still needs it."""
        self.tried[module].wait()
        return not self.over.is_set()


@contextlib.contextmanager
def imports(
    *modules: str, at_once: bool, beside: Callable[[Imports], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Import modules in this order in the background while the block runs, and without looking for garbage meanwhile.

    Importing makes a million objects that stay; looking through them again and again takes a tenth of the time.

    Args:
        at_once: begin now, since they will surely be needed; else when the block asks for them.
        beside: something else to do in the background, in parts between which it asks whether all is over. What it
            raises is dropped.

    Yields:
        a function that returns when all is done, and raises what importing raises.
    """
    state = Imports(modules)
    new, collects = any(name not in sys.modules for name in modules), gc.isenabled()

    def load() -> None:
        for name in modules:
            if not state.over.is_set():
                import_module(name)
                state.tried[name].set()

    def run(work: Callable[[], None]) -> None:
        with contextlib.suppress(Exception):  # whoever needs the module meets the error again
            work()

    def tell_all() -> None:
        for event in state.tried.values():
            event.set()

    def load_all() -> None:
        run(load)
        tell_all()

    works = [load_all] + ([lambda: run(lambda: beside(state))] if beside else [])
    threads = [threading.Thread(target=work) for work in works if new]

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
        state.over.set()
        tell_all()
        restore()
