"""Kernels that give the same result each time, chosen while training runs."""

import contextlib
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
