"""Processes that train one adapter together, each on a GPU of its own: which of them this is, and what they exchange.

Each takes its rows of a batch, and their gradients are added up, so that a step is that of one GPU. Only the adapter's
matrices have gradients; these lie in one buffer and go over in one exchange.
"""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

Row = TypeVar("Row")
PATIENCE = timedelta(minutes=30)  # for a process that reads its data or writes a checkpoint


class Ranks:
    """This process among those that train together; alone by default."""

    def __init__(self, number: int = 0, count: int = 1):
        self.number, self.count = number, count
        self._buffer: Tensor | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.number == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def share(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows of this process. Of rows sorted by length, all processes get like lengths; it may be none."""
        return rows[self.number :: self.count]

    def begin(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the parameters those of the first process, and lay their gradients into one buffer."""
        if self.alone:
            return
        with torch.no_grad():
            for parameter in parameters:
                distributed.broadcast(parameter, 0)
        sizes = [parameter.numel() for parameter in parameters]
        self._buffer = torch.zeros(sum(sizes) + 2, device=parameters[0].device)  # and loss, and whether to stop
        for parameter, part in zip(parameters, self._buffer[:-2].split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def add_gradients(self, loss: float, stop: bool) -> tuple[float, bool]:
        """Add up the gradients of all processes in place.

        Returns:
            the sum of their losses, and whether any of them is to stop.
        """
        if self._buffer is None:
            return loss, stop
        self._buffer[-2:] = torch.tensor([loss, float(stop)])
        distributed.all_reduce(self._buffer)
        total, stops = self._buffer[-2:].tolist()
        return total, stops > 0

    def add(self, value: float, device: torch.device) -> float:
        """The sum of all processes' values."""
        if self.alone:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total)

    @contextlib.contextmanager
    def first_before(self, device: torch.device) -> Iterator[None]:
        """The others do the block when the first process has done it."""
        if not self.first:
            self.add(0.0, device)
        yield
        if self.first:
            self.add(0.0, device)


@contextlib.contextmanager
def joined(number: int, count: int, place: Path, cuda: bool) -> Iterator[Ranks]:
    """While the block runs, this process can exchange with the others.

    Args:
        place: a file that all see and that is not there yet, through which they find each other.
    """
    store = distributed.FileStore(str(place), count)
    distributed.init_process_group("nccl" if cuda else "gloo", store=store, rank=number, world_size=count,
                                   timeout=PATIENCE)
    yield Ranks(number, count)
    distributed.destroy_process_group()  # not after a fault: it would wait for processes that are gone
