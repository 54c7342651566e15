"""Activations computed twice: a part of a layer keeps its input, and makes the rest again in the backward pass.

An adapter's dropout draws its mask once and keeps it, a byte an element. So nothing has to set the random generator
back for the second time, which a CUDA graph could not do, and steps that recompute stay graphs.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

NOTHING, MLP, LAYER = range(3)  # what of each layer is computed twice: each keeps less, and takes longer
WORDS = {MLP: "the MLP of each layer", LAYER: "each layer"}


class Recompute:
    """What of a model's layers is computed twice.

    exact: whether masks of dropout are kept for it; else the random generator is set back, which no graph can do.
    """

    def __init__(self, model: nn.Module):
        self.layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self.adapted = [m for m in model.modules() if hasattr(m, "lora_dropout")]
        dropouts = {id(d) for m in self.adapted for d in m.lora_dropout.values()}  # type: ignore[operator,union-attr]
        config: Any = model.config
        self.exact = not getattr(config, "attention_dropout", 0.0) and not any(
            (isinstance(m, nn.Dropout) and m.p and id(m) not in dropouts)
            or any(getattr(m, name, None) for name in ("rank_dropout", "module_dropout"))  # of LoHa, LoKr
            for m in model.modules())
        self.level, self.wrapped = NOTHING, list[tuple[Any, Any]]()
        self.masks: deque[Tensor] | None = None  # of what is computed now, if it is computed twice
        self.again = False

    @property
    def highest(self) -> int:
        return LAYER if self.layers else NOTHING

    def keep_masks(self) -> None:
        """Let each adapter's dropout keep its mask for the second time."""
        for module in self.adapted:
            dropouts: Any = module.lora_dropout
            for name, dropout in dropouts.items():
                if type(dropout) is nn.Dropout:
                    dropouts[name] = KeptDropout(dropout.p, self)

    def set(self, level: int) -> None:
        """Compute so much twice from now on."""
        if self.exact:
            self.keep_masks()
        self.level = level
        while self.wrapped:
            module, forward = self.wrapped.pop()
            module.forward = forward
        for layer in self.layers if level else ():
            self._wrap(getattr(layer, "mlp", layer) if level == MLP else layer)

    def _wrap(self, module: Any) -> None:
        forward = module.forward
        self.wrapped.append((module, forward))

        def twice(*args: Any, **keywords: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **keywords)
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=not self.exact,
                              context_fn=self._contexts, **keywords)

        module.forward = twice

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around the first and the second time."""
        masks = deque[Tensor]()
        return self._with(masks, False), self._with(masks, True)

    @contextmanager
    def _with(self, masks: deque[Tensor], again: bool) -> Iterator[None]:
        before = self.masks, self.again
        self.masks, self.again = masks, again
        try:
            yield
        finally:
            self.masks, self.again = before


class KeptDropout(nn.Dropout):
    """Dropout whose second computation has the mask of the first."""

    def __init__(self, p: float, recompute: Recompute):
        super().__init__(p)
        self.recompute = recompute

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return input
        masks = self.recompute.masks
        if masks is not None and self.recompute.again:
            mask = masks.popleft()
        else:
            mask = torch.empty_like(input, dtype=torch.bool).bernoulli_(1 - self.p)
            if masks is not None:
                masks.append(mask)
        return input * mask * (1 / (1 - self.p))
