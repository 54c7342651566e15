"""Processes that work together, each on a GPU of its own: which of them this is, and what they exchange.

Training: each takes its rows of a batch, and their gradients are added up, so that a step is that of one GPU. Only the
adapter's matrices have gradients; these lie in one buffer and go over in one exchange. Quantizing: each runs its share
of the calibration and does its part of the searches; sums and results are given to all.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

Row = TypeVar("Row")
Made = TypeVar("Made")
PATIENCE = timedelta(minutes=30)  # for a process that reads its data or writes a checkpoint


class Ranks:
    """This process among those that work together; alone by default.

    sharded: whether they hold one model together, so that each has to use it as many times as the others.
    """

    def __init__(self, number: int = 0, count: int = 1, sharded: bool = False):
        self.number, self.count, self.sharded = number, count, sharded
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
        return rows[self.stride]

    @property
    def stride(self) -> slice:
        """Where in a sequence the rows of this process are."""
        return slice(self.number, None, self.count)

    def part(self, length: int) -> slice:
        """What this process does of so many things side by side; it may be none."""
        return slice(length * self.number // self.count, length * (self.number + 1) // self.count)

    def add_up(self, *tensors: Tensor) -> None:
        """Put the sum of all processes' tensors in place of each; the same bits in all of them."""
        for tensor in tensors if not self.alone else ():
            distributed.all_reduce(tensor)

    def whole(self, mine: Tensor, length: int, where: slice) -> Tensor:
        """A tensor of so many rows put together from what each process has of it: its part, or its stride."""
        if self.alone:
            return mine
        whole = mine.new_zeros(length, *mine.shape[1:])
        whole[where] = mine
        distributed.all_reduce(whole)
        return whole

    def same(self, tensor: Tensor) -> Tensor:
        """The tensor with the first process's values."""
        if not self.alone:
            distributed.broadcast(tensor, 0)
        return tensor

    def of_first(self, make: Callable[[], Made]) -> Made:
        """What the first process makes, given to all. It is pickled."""
        if self.alone:
            return make()
        made = [make() if self.first else None]
        distributed.broadcast_object_list(made, 0)
        return made[0]  # type: ignore[return-value]

    def begin(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the parameters those of the first process, and lay their gradients into one buffer."""
        if self.alone:
            return
        with torch.no_grad():
            for parameter in parameters:
                distributed.broadcast(parameter, 0)
        self._buffer = one_buffer(parameters, 2)  # and loss, and whether to stop

    def add_gradients(self, loss: Tensor, stop: bool) -> tuple[Tensor, Tensor | bool]:
        """Add up the gradients of all processes in place, without waiting for it.

        Returns:
            the sum of their losses, a scalar, and whether any of them is to stop.
        """
        if self._buffer is None:
            return loss, stop
        self._buffer[-2] = loss
        self._buffer[-1] = float(stop)
        distributed.all_reduce(self._buffer)
        total, stops = self._buffer[-2:].clone()
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


def one_buffer(parameters: Sequence[nn.Parameter], more: int = 0) -> Tensor:
    """Lay the gradients of parameters, zero at first, into one float32 buffer, with room for some numbers more."""
    sizes = [parameter.numel() for parameter in parameters]
    buffer = torch.zeros(sum(sizes) + more, device=parameters[0].device)
    for parameter, part in zip(parameters, buffer[: sum(sizes)].split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    return buffer


@contextlib.contextmanager
def joined(number: int, count: int, place: Path, cuda: bool, sharded: bool = False) -> Iterator[Ranks]:
    """While the block runs, this process can exchange with the others.

    Args:
        place: a file that all see and that is not there yet, through which they find each other. sharded: as in
            `Ranks`.
    """
    store = distributed.FileStore(str(place), count)
    distributed.init_process_group("nccl" if cuda else "gloo", store=store, rank=number, world_size=count,
                                   timeout=PATIENCE)
    yield Ranks(number, count, sharded)
    distributed.destroy_process_group()  # not after a fault: it would wait for processes that are gone
