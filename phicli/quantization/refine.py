"""A layer's integers and scales trained on what the original layer puts out.

Rounding is learned layer by layer, as in AutoRound (Cheng et al., 2023, arXiv:2309.05516) and EfficientQAT's Block-AP
(Chen et al., 2024, arXiv:2407.11062), but begins from AWQ's grids and GPTQ's integers. The layer reads what the
quantized layers before it give and is to give what the original gives on the original's input, so that it makes up for
their errors too (as in GPTAQ, Li et al., 2025, arXiv:2504.02692). Gradients pass through rounding as if it were not
there (the straight-through estimator, Bengio et al., 2013, arXiv:1308.3432).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phicli.hardware.ranks import Ranks, one_buffer
from phicli.quantization.grid import Grid, GridShape
from phicli.resources.estimates import REFINE_STEPS, REFINE_TOKENS
from phicli.workflow.wording import worded

PATH = 0.4  # of an integer: what all steps' rates for positions add up to, twice; so more steps are smaller ones
SCALE_PATH = 0.1  # of a scale, likewise
WARM_UP = 0.05  # of the steps
BETAS, EPSILON = (0.9, 0.99), 1e-12
EDGE = 0.49  # how far a position may be from the integer that it rounds to, at the start
HELD_OUT = 1 / 16  # of the rows: they tell whether it helped
PLAIN_STEPS = 3  # before a graph is captured, which must find everything in place


def steps_of(wanted: int | None, device: str) -> int:
    """The number of steps that a setting stands for."""
    return REFINE_STEPS[device] if wanted is None else wanted


class RoundedLinear(nn.Module):
    """w = (round(position) - zero) * scale * (1 + stretch), with position and stretch trained."""

    def __init__(self, linear: nn.Linear, grid: Grid, shape: GridShape):
        """linear: with the weight that was rounded; where rounding moved it further, it starts at its cell's edge."""
        super().__init__()
        integers, self.scale, self.zero = grid
        self.shape, self.bias = shape, None if linear.bias is None else linear.bias.data.float()
        weight = shape.groups(linear.weight.float())
        real = (weight / self.scale.unsqueeze(-1) + self.zero.unsqueeze(-1)).flatten(1)
        self.position = nn.Parameter(integers + (real - integers).clamp_(-EDGE, EDGE))
        self.stretch = nn.Parameter(torch.zeros_like(self.scale))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _Round.apply(self.position, self.scales(), self.zero, self.shape), self.bias)

    def scales(self) -> Tensor:
        """float32 (out, groups), rounded to what float16 holds, as if that were not done for the gradient."""
        scale = self.scale * (1 + self.stretch)
        return scale + (scale.detach().half().float() - scale.detach())

    @torch.no_grad()
    def grid(self) -> Grid:
        return _integers(self.position, self.shape), self.scales().half().float(), self.zero


class _Round(torch.autograd.Function):
    """The weight of a grid; only position and scale are kept for the backward pass, which rounds again."""

    @staticmethod
    def forward(ctx: Any, position: Tensor, scale: Tensor, zero: Tensor, shape: GridShape) -> Tensor:
        ctx.save_for_backward(position, scale, zero)
        ctx.shape = shape
        return _centred(position, zero, shape).mul_(scale.unsqueeze(-1)).flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        position, scale, zero = ctx.saved_tensors
        gradient = ctx.shape.groups(gradients[0])
        by_scale = (gradient * _centred(position, zero, ctx.shape)).sum(-1)
        return (gradient * scale.unsqueeze(-1)).flatten(1), by_scale, None, None


def _integers(position: Tensor, shape: GridShape) -> Tensor:
    return position.detach().round().clamp_(0, shape.top)


def _centred(position: Tensor, zero: Tensor, shape: GridShape) -> Tensor:
    return shape.groups(_integers(position, shape)) - zero.unsqueeze(-1)


class Refinement:
    """Trains one layer after another.

    Args:
        steps: of `REFINE_TOKENS` tokens, for each layer. seed: of the order in which rows are drawn. ranks: processes
            that share out the rows of each step; each is given all rows.
    """

    def __init__(self, steps: int, device: torch.device, seed: int = 0, ranks: Ranks | None = None):
        self.steps, self.device, self.seed, self.ranks = steps, device, seed, ranks or Ranks()
        self.use_graphs = device.type == "cuda"
        self.errors: list[tuple[float, float]] = []

    def __call__(self, layer: nn.Module, grids: dict[str, Grid], shape: GridShape, inputs: Tensor, targets: Tensor,
                 keywords: dict[str, Any]) -> dict[str, Grid]:
        """Better grids for the linears of these names, or the same ones where no better were found.

        Args:
            layer: with the weights that are rounded, which stay as they are. inputs, targets: (rows, length, hidden),
                what the quantized layers before give and what the original gives. keywords: of the layer's call.
        """
        dtype = next(layer.parameters()).dtype
        held = max(1, round(len(inputs) * HELD_OUT)) if len(inputs) > 1 else 0
        with rounded(layer, grids, shape) as linears:
            layer.float()
            order = self._order(len(inputs) - held)
            task = _Task(layer, linears, inputs[held:], targets[held:], _float(keywords), order, self.ranks)
            before = task.error(inputs[:held], targets[:held]) if held else 0.0
            with torch.enable_grad():
                self._train(task)
            after = task.error(inputs[:held], targets[:held]) if held else 0.0
            found = {name: linear.grid() for name, linear in linears.items()}
            layer.to(dtype)
        if held and not after < before:  # one that is NaN too
            self.errors.append((before, before))
            return grids
        self.errors.append((before, after))
        return found

    def _order(self, count: int) -> Iterator[Tensor]:
        """Numbers of rows without end, all of them before one comes again."""
        generator = torch.Generator().manual_seed(self.seed + len(self.errors))
        while True:
            yield from torch.randperm(count, generator=generator).split(1)

    def _train(self, task: "_Task") -> None:
        graph = None
        for step in range(self.steps):
            task.draw()
            task.set_pace(min(1, (step + 1) / (WARM_UP * self.steps)) * (1 - step / self.steps) / self.steps)
            if graph is not None:
                graph.replay()
            elif not self.use_graphs or step < PLAIN_STEPS:
                task.step()
            else:
                graph = self._capture(task)

    def _capture(self, task: "_Task") -> torch.cuda.CUDAGraph | None:
        """A step as a CUDA graph, made at once; where a layer cannot be captured, the step and no graph from now on.

        Python takes longer to launch a small layer's kernels than the GPU to run them. Other threads read and write
        meanwhile, so what they may do is not restricted.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                task.step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            torch.cuda.synchronize()
            self.use_graphs = False
            task.step()
            return None
        graph.replay()
        return graph


class _Task:
    """A layer that is trained: its rows, its parameters and their optimizer."""

    def __init__(self, layer: nn.Module, linears: dict[str, RoundedLinear], inputs: Tensor, targets: Tensor,
                 keywords: dict[str, Any], order: Iterator[Tensor], ranks: Ranks):
        self.layer, self.inputs, self.targets, self.keywords, self.order = layer, inputs, targets, keywords, order
        self.ranks = ranks
        layer.requires_grad_(False)
        parts = [[linear.position for linear in linears.values()], [linear.stretch for linear in linears.values()]]
        for parameter in parts[0] + parts[1]:
            parameter.requires_grad_(True)
        self.gradients = one_buffer(parts[0] + parts[1])
        self.rates = [torch.zeros((), device=inputs.device) for _ in parts]
        groups = [{"params": part, "lr": rate} for part, rate in zip(parts, self.rates, strict=True)]
        cuda = inputs.device.type == "cuda"
        self.optimizer = torch.optim.Adam(groups, betas=BETAS, eps=EPSILON, fused=True, capturable=cuda)
        self.count = max(1, min(len(inputs), REFINE_TOKENS[inputs.device.type] // inputs.shape[1]))
        self.rows = torch.zeros(len(ranks.share(range(self.count))), dtype=torch.long, device=inputs.device)

    def draw(self) -> None:
        """Choose the rows of the next step."""
        self.rows.copy_(torch.cat([next(self.order) for _ in range(self.count)])[self.ranks.stride])

    def set_pace(self, share: float) -> None:
        """share: of the whole path that the next step may go, at twice its mean."""
        for rate, path in zip(self.rates, (PATH, SCALE_PATH), strict=True):
            rate.fill_(path * share)

    def step(self) -> None:
        if len(self.rows):
            error = self._error(self.inputs[self.rows], self.targets[self.rows])
            (error * (len(self.rows) / self.count)).backward()
        self.ranks.add_up(self.gradients)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # a graph adds to these very tensors

    @torch.no_grad()
    def error(self, inputs: Tensor, targets: Tensor) -> float:
        """Mean over tokens of the squared error of the layer's output, relative to the square of what it should be."""
        parts = zip(*(rows[self.ranks.stride].split(self.count) for rows in (inputs, targets)), strict=True)
        total = sum(float(self._error(x, y)) * len(x) for x, y in parts if len(x))
        return self.ranks.add(total, inputs.device) / len(inputs)

    def _error(self, x: Tensor, y: Tensor) -> Tensor:
        # Relative for each token: else the few tokens with a hundred times the norm were all that is learned from.
        y = y.float()
        with worded("transformers cannot run a layer of this model"):
            out = self.layer(x.float(), **self.keywords)
        out = out[0] if isinstance(out, tuple) else out
        return ((out - y).pow(2).mean(-1) / y.pow(2).mean(-1).clamp(min=1e-8)).mean()


@contextlib.contextmanager
def rounded(layer: nn.Module, grids: dict[str, Grid], shape: GridShape) -> Iterator[dict[str, RoundedLinear]]:
    """Within, linears that can be trained stand in place of those of these names."""
    plain = {name: layer.get_submodule(name) for name in grids}
    made = {name: RoundedLinear(plain[name], grid, shape) for name, grid in grids.items()}  # type: ignore[arg-type]
    try:
        for name, linear in made.items():
            layer.set_submodule(name, linear)
        yield made
    finally:
        for name, module in plain.items():
            layer.set_submodule(name, module)


def _float(value: Any) -> Any:
    """The same with float32 tensors in place of those in half precision."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    if isinstance(value, dict):
        return {key: _float(one) for key, one in value.items()}
    return type(value)(map(_float, value)) if type(value) in (tuple, list) else value
