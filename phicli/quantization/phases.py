"""Where the time goes, by phase."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Seconds by phase, summed over layers.

    On CUDA an event is put into the stream before and after a phase and read at the end, so that measuring makes
    neither the host nor the GPU wait; a phase's time then is what the GPU spent in it or waiting for it.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.spans: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = self._now()
        yield
        self.spans.append((name, begun, self._now()))

    def _now(self) -> "float | torch.cuda.Event":
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds, in the order in which phases first came; on CUDA waits for the work to end."""
        if self.cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for name, begun, ended in self.spans:
            if isinstance(begun, float) and isinstance(ended, float):
                span = ended - begun
            else:
                span = begun.elapsed_time(ended) / 1000  # type: ignore[union-attr, arg-type]
            total[name] = total.get(name, 0.0) + span
        return {name: round(seconds, 3) for name, seconds in total.items()}
