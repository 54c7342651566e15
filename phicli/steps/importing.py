"""The libraries a step computes with, imported beside its first work, which is hashing its inputs."""

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module

from phicli.libraries import spare_garbage_collection

Reached = Callable[[str], bool]


class _Loader:
    """Imports modules in their order, up to the one in progress when `over` is set."""

    def __init__(self, modules: tuple[str, ...]):
        self.over, self.tried = threading.Event(), {name: threading.Event() for name in modules}

    def load(self) -> None:
        for name, tried in self.tried.items():
            if not self.over.is_set():
                import_module(name)
                tried.set()

    def load_early(self) -> None:
        with contextlib.suppress(Exception):  # whoever loads again meets the error again
            self.load()
        for tried in self.tried.values():
            tried.set()

    def reached(self, name: str) -> bool:
        """Wait until a module is imported, or cannot be; whether to go on."""
        self.tried[name].wait()
        return not self.over.is_set()


@contextlib.contextmanager
def imports(*modules: str, at_once: bool, beside: Callable[[Reached], object] = bool) -> Iterator[Callable[[], None]]:
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
    loader, new = _Loader(modules), any(name not in sys.modules for name in modules)
    collects = gc.isenabled() and new

    def short() -> None:
        with contextlib.suppress(Exception):
            beside(loader.reached)

    threads = [threading.Thread(target=work) for work in (loader.load_early, short)] if new and at_once else []

    def ready() -> None:
        for thread in threads:
            thread.join()
        loader.load()
        if new:
            spare_garbage_collection()

    if collects:
        gc.disable()
    for thread in threads:
        thread.start()
    try:
        yield ready
    finally:
        loader.over.set()
        for thread in threads:
            thread.join()  # at most the module that is being imported
        if collects:
            gc.enable()
