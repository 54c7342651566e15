"""Kernels that give the same result each time, chosen while training runs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def repeatable(cuda: bool) -> Iterator[None]:
    """Kernels that give the same result each time.

    By the debug mode, which is the same switch without the import of torch's compiler to tell it.
    """
    before = torch.get_deterministic_debug_mode()
    determinism: Any = torch.utils.deterministic
    filling, cudnn = determinism.fill_uninitialized_memory, torch.backends.cuda.cudnn_sdp_enabled()
    if cuda:
        torch.set_deterministic_debug_mode("warn")
        determinism.fill_uninitialized_memory = False  # thousands of kernels a step
        torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for each length, 3 ms a layer
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        determinism.fill_uninitialized_memory = filling
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
