"""The libraries a step computes with, imported beside its first work, which is hashing its inputs."""

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module

from phicli.libraries import spare_garbage_collection


@contextlib.contextmanager
def imports(
    *modules: str, at_once: bool, beside: Callable[[Callable[[str], bool]], object] = bool
) -> Iterator[Callable[[], None]]:
    """Import modules in this order in the background while the block runs, without looking for garbage meanwhile.

    Importing makes a million objects that stay; looking through them again and again takes a tenth of the time. What
    garbage collection was before, it is again after the block.

    Args:
        at_once: begin now, since they will surely be needed; else when the block asks for them.
        beside: something short that can go on in another thread meanwhile, if the modules are not there yet. It gets a
            function that waits until one of the modules is imported (or cannot be) and says whether to go on.

    Yields:
        a function that returns when all is imported, and raises what importing raises.
    """
    over, tried = threading.Event(), {name: threading.Event() for name in modules}

    def load() -> None:
        for name in modules:
            if not over.is_set():
                import_module(name)
                tried[name].set()

    def reached(name: str) -> bool:
        tried[name].wait()
        return not over.is_set()

    def load_early() -> None:
        with contextlib.suppress(Exception):  # `ready` meets the error again
            load()
        for event in tried.values():
            event.set()

    def short() -> None:
        with contextlib.suppress(Exception):
            beside(reached)

    new = any(name not in sys.modules for name in modules)
    collects = gc.isenabled() and new
    threads = [threading.Thread(target=load_early), threading.Thread(target=short)] if new and at_once else []

    def ready() -> None:
        for thread in threads:
            thread.join()
        load()
        if new:
            spare_garbage_collection()

    if collects:
        gc.disable()
    for thread in threads:
        thread.start()
    try:
        yield ready
    finally:
        over.set()
        for thread in threads:
            thread.join()  # at most the module that is being imported
        if collects:
            gc.enable()
