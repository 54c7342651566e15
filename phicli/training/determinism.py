"""What training sets in its process and puts back: how kernels are chosen, and what Ctrl-C does."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def repeatable(cuda: bool) -> Iterator[None]:
    """Kernels that give the same result each time."""
    before = torch.are_deterministic_algorithms_enabled()
    determinism: Any = torch.utils.deterministic
    filling, cudnn = determinism.fill_uninitialized_memory, torch.backends.cuda.cudnn_sdp_enabled()
    if cuda:
        torch.use_deterministic_algorithms(True, warn_only=True)
        determinism.fill_uninitialized_memory = False  # thousands of kernels a step
        torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for each length, 3 ms a layer
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        determinism.fill_uninitialized_memory = filling
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


@contextlib.contextmanager
def ctrl_c() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that the step in progress can end; the second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handler(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
