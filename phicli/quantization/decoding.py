"""A model of transformers that writes many rows at once, whose keys and values stay in place: a step is a CUDA graph.

Launching the kernels of a small model's step one by one takes Python longer than they take the GPU.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from phicli.errors import Missing
from phicli.workflow.patching import replaced

PLAIN_STEPS = 2  # before a graph is captured, which must find kernels and libraries loaded

Step = Callable[[Tensor], Tensor]  # tokens, int64 (rows, new) -> logits after the last of each row, (rows, vocabulary)


def step_of(model: Any, length: int) -> Step:
    """What runs the next tokens of rows that begin with nothing, up to so many tokens of each."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if next(model.parameters()).device.type != "cuda" or (window and window < length):
        return Growing(model)
    return Placed(model, length)


class Growing:
    """With a cache of transformers', which grows with each token."""

    def __init__(self, model: Any):
        self.model, self.cache = model, None

    def __call__(self, tokens: Tensor) -> Tensor:
        out = self.model(tokens, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out.logits[:, -1]


class Placed:
    """With keys and values of `length` tokens that stay where they are; single tokens run as a CUDA graph.

    Positions and mask are given to the model, and rotary embeddings are looked up in a table of all positions, since
    LongRoPE's code reads positions back from the GPU. A model that reads something else back runs without graph.
    """

    def __init__(self, model: Any, length: int):
        self.model, self.length = model, length
        some = next(model.parameters())
        self.device, self.steps, self.use_graph = some.device, 0, some.device.type == "cuda"
        self.places = torch.arange(0, device=self.device)
        self.cache = _PlacedCache(length)
        self.mask = torch.full((1, 1, 1, length), torch.finfo(some.dtype).min, dtype=some.dtype, device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.rotary = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
        self.tables: list[Any] = []

    def __call__(self, tokens: Tensor) -> Tensor:
        if not self.steps:
            return self._first(tokens)
        self.steps += 1
        self.tokens.copy_(tokens)
        self.places += 1
        self.mask.index_fill_(-1, self.places, 0)
        if self.graph:
            self.graph.replay()
        elif self.use_graph and self.steps > PLAIN_STEPS:
            self._capture()
        else:
            self.logits = self._run(self.tokens, self.mask)
        return self.logits

    def _first(self, tokens: Tensor) -> Tensor:
        """What the rows begin with; beside it all positions of one row, for the tables."""
        self.steps = 1
        hooks = [m.register_forward_hook(lambda module, args, out: self.tables.append(out)) for m in self.rotary]
        self.model(torch.zeros(1, self.length, dtype=torch.long, device=self.device), use_cache=False)
        for hook in hooks:
            hook.remove()
        new = tokens.shape[1]
        self.cache.places = self.places = torch.arange(new, device=self.device)
        seen = torch.arange(self.length, device=self.device) <= self.places[:, None]
        mask = torch.zeros_like(seen, dtype=self.mask.dtype).masked_fill_(~seen, self.mask.min())
        logits = self._run(tokens, mask[None, None])
        self.mask[..., :new] = 0
        self.tokens = tokens[:, -1:].clone()
        self.cache.places = self.places = torch.full_like(self.places[:1], new - 1)
        return logits

    def _run(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tables = iter(self.tables)
        with contextlib.ExitStack() as stack:
            for module in self.rotary if all(isinstance(table, tuple) for table in self.tables) else ():
                stack.enter_context(replaced(module, "forward", lambda *args, **keywords: tuple(
                    part.index_select(1, self.places) for part in next(tables))))
            out = self.model(tokens, attention_mask=mask, position_ids=self.places[None], past_key_values=self.cache,
                             use_cache=True)
        return out.logits[:, -1]

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.logits = self._run(self.tokens, self.mask)
        except (RuntimeError, Missing):  # an architecture that reads values back from the GPU on its way
            self.use_graph = False
            torch.cuda.synchronize()
            self.logits = self._run(self.tokens, self.mask)
            return
        self.graph = graph
        graph.replay()


class _PlacedCache(DynamicCache):
    """Keys and values (rows, heads, length, size) of each layer; a run's come to `places`, int64 (new,)."""

    def __init__(self, length: int):
        super().__init__()
        self.length, self.places = length, torch.empty(0)
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **keywords: Any
               ) -> tuple[Tensor, Tensor]:
        if layer_idx not in self.held:
            self.held[layer_idx] = self._zeros(key_states), self._zeros(value_states)
        keys, values = self.held[layer_idx]
        return keys.index_copy_(2, self.places, key_states), values.index_copy_(2, self.places, value_states)

    def _zeros(self, like: Tensor) -> Tensor:
        rows, heads, _, size = like.shape
        return like.new_zeros(rows, heads, self.length, size)
