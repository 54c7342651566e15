"""A step's forward and backward pass as CUDA graphs.

A batch of short rows keeps a GPU busy for less than half of the time that Python takes to launch its several thousand
kernels one by one (measured: docs/performance.md). A graph launches all of them at once. It holds for one shape of
batch. The first batch of all is run plainly, which loads kernels and libraries. From then on a shape is captured when
it comes first: run plainly before, it would take as long, and its memory twice, as what graphs hold is theirs.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from phicli.errors import Missing
from phicli.training.loss import Batch, RowLoss
from phicli.workflow.patching import replaced

MOST_GRAPHS = 16  # each holds the activations of its shape; further shapes run without


class Gradients:
    """Adds the gradients of a loss to the parameters, through a graph where there is one."""

    def __init__(self, model: nn.Module, loss: RowLoss, parameters: list[nn.Parameter],
                 autocast: Callable[[], contextlib.AbstractContextManager], use_graphs: bool = True):
        self.model, self.loss, self.parameters, self.autocast = model, loss, parameters, autocast
        self.use_graphs = use_graphs and loss.device.type == "cuda"
        self.warm = False  # a batch went through
        self.graphs: dict[torch.Size, _Graph] = {}

    def __call__(self, batch: Batch, weight: float) -> Tensor:
        """weight times the loss, a detached scalar; its gradients are added to those that the parameters have."""
        shape = batch.ids.shape
        if shape in self.graphs:
            return self.graphs[shape](batch, weight)
        if not self.use_graphs:
            return self._plain(batch, weight)
        if not self.warm or len(self.graphs) == MOST_GRAPHS:
            loss = self._plain(batch, weight)
            self.warm = True
            return loss
        try:
            self.graphs[shape] = self._capture(batch)
        except torch.OutOfMemoryError:
            self.forget()
            raise
        except (RuntimeError, Missing):  # an architecture that reads values back from the GPU on its way
            self.drop()
            torch.cuda.synchronize()
            _free_generator()
            return self._plain(batch, weight)
        return self.graphs[shape](batch, weight)

    def forget(self) -> None:
        """Free the graphs, as memory is short."""
        self.graphs.clear()

    def drop(self) -> None:
        """Free the graphs and do without from now on."""
        self.use_graphs = False
        self.forget()

    def _plain(self, batch: Batch, weight: float | Tensor) -> Tensor:
        with self.autocast():
            loss = self.loss(batch) * weight
        loss.backward()
        return loss.detach()

    def _capture(self, batch: Batch) -> "_Graph":
        positions = _Positions(self.model)
        self.model.eval()  # no random number is drawn that a step run plainly would not draw
        with positions.recorded(), torch.no_grad(), self.autocast():
            self.loss(batch)
        self.model.train()
        for parameter in self.parameters:  # the graph adds to these very tensors
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        pool = next(iter(self.graphs.values())).graph.pool() if self.graphs else None
        graph = _Graph(batch, self.loss.device, positions)
        # Of several GPUs NCCL has a thread that asks for events, which would break a capture that watches all threads.
        watched = "thread_local" if torch.distributed.is_initialized() else "global"
        with (positions.replayed(), _uncollected(),
              torch.cuda.graph(graph.graph, pool=pool, capture_error_mode=watched)):
            graph.result = self._plain(graph.batch, graph.weight)
        return graph


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing is garbage collected meanwhile: the graphs of an earlier run wait for the GPU when they are freed, which
    no capture survives.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _free_generator() -> None:
    """A capture that broke leaves the generator of random numbers in its hands: give the generator another state."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    fresh = torch.Generator("cuda").manual_seed(generator.initial_seed())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())


class _Graph:
    def __init__(self, batch: Batch, device: torch.device, positions: "_Positions"):
        self.positions = positions  # which the graph reads
        self.graph = torch.cuda.CUDAGraph()
        self.batch = Batch(*(t.to(device) for t in (batch.ids, batch.places, batch.labels)))
        self.weight = torch.zeros((), device=device)
        self.result: Tensor

    def __call__(self, batch: Batch, weight: float) -> Tensor:
        self.batch.ids.copy_(batch.ids)
        self.batch.labels.copy_(batch.labels)
        self.weight.fill_(weight)
        self.graph.replay()
        return self.result.clone()


class _Positions:
    """What a model computes from the shape of a batch alone, and reads back from the GPU on the way.

    Rotary embeddings (which of LongRoPE's factors to take is decided on the CPU) and the causal mask. Both are
    recorded when a shape is run plainly, and given back while its graph is captured.
    """

    def __init__(self, model: nn.Module):
        self.modules = [m for name, m in model.named_modules() if name.endswith("rotary_emb")]
        self.outputs: list[Any] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        self.outputs.clear()
        hooks = [m.register_forward_hook(lambda module, args, out: self.outputs.append(out)) for m in self.modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        from transformers import masking_utils

        outputs = iter(self.outputs)
        with contextlib.ExitStack() as stack:
            for module in self.modules:
                stack.enter_context(replaced(module, "forward", lambda *args, **keywords: next(outputs)))
            # Every row is one text from its first token on, so attention is causal and needs no mask.
            stack.enter_context(replaced(masking_utils, "find_packed_sequence_indices", lambda position_ids: None))
            stack.enter_context(replaced(masking_utils, "is_tracing", lambda *args: False))
            yield
