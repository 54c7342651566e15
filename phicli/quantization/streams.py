"""Work that does not depend on each other, side by side on a GPU."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(jobs: Sequence[Callable[[], T]], device: torch.device) -> list[T]:
    """Results of the jobs, in their order; on CUDA each runs on a stream of its own, else one after the other.

    Memory: what a job allocates belongs to its stream, which begins again only after the current stream has come to
    the next call of this function, and what it reads is not freed before the current stream has waited for it.
    """
    if device.type != "cuda":
        return [job() for job in jobs]
    current, found = torch.cuda.current_stream(device), []
    streams = [_stream(number, device) for number in range(len(jobs))]
    for job, stream in zip(jobs, streams, strict=True):
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            found.append(job())
    for stream in streams:
        current.wait_stream(stream)
    return found


@cache
def _stream(number: int, device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
