"""Puts the fused functions in place of a model's own, wherever both compute the same."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from phicli.checkpoints.int4 import Int4Linear
from phicli.training.fused.functions import Adapter, Gated, Norm, Product, Remade, Rotary, gated
from phicli.training.fused.kernels import normalize
from phicli.workflow.patching import replaced

TOKENS = 16  # that a function is tried with
LARGE = 4.0  # so that curves differ
APART = 1e-2  # how far results may lie from each other, as a share: bfloat16 rounds at other places
ROTARY = "apply_rotary_pos_emb"

Forward = Callable[[Tensor], Tensor]


class Fused:
    """A PeftModel on a GPU whose norms, gated products, rotary embeddings and linears with adapters are ours.

    What a kind of module computes is found by trying; those that compute something else stay, as do adapters that are
    no plain LoRA. Masks of dropout follow a seed, drawn at each forward pass of the whole model in training.
    """

    def __init__(self, model: Any):
        """model: frozen but for its adapter."""
        base = model.get_base_model()
        self.dtype = base.dtype
        self.seed = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.weights, self.halves = list[Tensor](), list[Tensor]()
        for salt, module in enumerate(filter(_is_plain, model.modules())):
            self._adapt(module, salt)
        self.kinds = dict[type, int | None]()  # of modules: which of `_candidates` computes the same
        for module in base.modules():
            candidates = _norms(module) or _gated_products(module)
            if candidates and (which := self._which(module, candidates)) is not None:
                module.forward = candidates[which]
        self.rotary = [place for place in {sys.modules[type(m).__module__] for m in base.modules()}
                       if _same_rotation(getattr(place, ROTARY, None), model.device)]
        (base.get_decoder() or base).register_forward_pre_hook(self._begin)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While the model trains: rotary embeddings are a function of transformers' module, which gets it back."""
        with contextlib.ExitStack() as stack:
            for place in self.rotary:
                stack.enter_context(replaced(place, ROTARY, partial(_rotate, getattr(place, ROTARY))))
            yield

    def _adapt(self, module: Any, salt: int) -> None:
        name = module.active_adapters[0]
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        half_a, half_b = a.detach().to(self.dtype), b.detach().to(self.dtype)
        self.weights += a, b
        self.halves += half_a, half_b
        still = Adapter(half_a, half_b, module.scaling[name], self.seed, salt, 0.0)
        trained = still._replace(p=getattr(module.lora_dropout[name], "p", 0.0))

        def forward(x: Tensor) -> Tensor:
            adapter, remade = trained if module.training else still, getattr(x, "remade", None)
            result: Tensor = Product.apply(x.to(self.dtype), a, b, adapter, module.base_layer, remade)
            return result

        module.forward = forward

    def _begin(self, decoder: nn.Module, args: Any) -> None:
        """Before a forward pass: weights as they are now, and masks of its own."""
        with torch.no_grad():
            if self.weights:
                torch._foreach_copy_(self.halves, self.weights)
            if decoder.training:
                self.seed.random_()

    def _which(self, module: Any, candidates: list[Forward]) -> int | None:
        kind = type(module)
        if kind not in self.kinds:
            linear = getattr(module, "gate_up_proj", None) or getattr(module, "gate_proj", None)
            width = module.weight.shape[0] if linear is None else linear.in_features
            x = LARGE * torch.randn(1, TOKENS, width, device=self.seed.device).to(self.dtype)
            with torch.no_grad():
                theirs = module(x)
                apart, which = min((_apart(own(x), theirs), i) for i, own in enumerate(candidates))
            self.kinds[kind] = which if apart <= APART else None
        return self.kinds[kind]


def _is_plain(module: Any) -> bool:
    """Whether it is a linear with one LoRA adapter as in the paper, on a weight that `functions.Product` knows."""
    if type(module) is not LoraLinear or len(module.active_adapters) != 1 or module.merged or module.disable_adapters:
        return False
    (name,) = module.active_adapters
    return (name in module.lora_A and name not in module.lora_variant and not module.fan_in_fan_out
            and module.lora_A[name].bias is None and module.lora_B[name].bias is None
            and isinstance(module.lora_dropout[name], nn.Dropout | nn.Identity)
            and type(module.base_layer) in (nn.Linear, Int4Linear))


def _norms(module: Any) -> list[Forward]:
    """What it may compute, if it looks like one of transformers' RMS norms."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, nn.Parameter) or weight.requires_grad or weight.dim() != 1 or not isinstance(eps, float):
        return []

    def forward(offset: int, x: Tensor) -> Tensor:
        made: Tensor = Norm.apply(x, weight, eps, offset)
        return _remade(made, lambda kept: normalize(kept.reshape(-1, kept.shape[-1]), weight, eps, offset), x)

    return [partial(forward, offset) for offset in (0, 1)]


def _gated_products(module: Any) -> list[Forward]:
    """What it may compute, if it looks like one of transformers' gated MLPs, gate and up in one linear or in two."""
    both, gate, up, down = map(partial(_get, module), ("gate_up_proj", "gate_proj", "up_proj", "down_proj"))
    if not isinstance(down, nn.Module) or (both is None) == (gate is None or up is None):
        return []

    def forward(gelu: bool, x: Tensor) -> Tensor:
        parts = (both(x),) if both is not None else (gate(x), up(x))
        made: Tensor = Gated.apply(gelu, *parts)
        result: Tensor = down(_remade(made, partial(gated, gelu), *parts))
        return result

    return [partial(forward, gelu) for gelu in (False, True)]


def _get(module: Any, name: str) -> Any:
    return getattr(module, name, None)


def _remade(made: Tensor, make: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Tell the products that read `made` how it is made from what is kept anyway."""
    if torch.is_grad_enabled():
        made.remade = Remade(make, tuple(t.detach() for t in tensors))  # type: ignore[attr-defined]
    return made


def _rotate(original: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **keywords: Any
            ) -> tuple[Tensor, Tensor]:
    if args or keywords or q.stride(-1) != 1 or k.stride(-1) != 1:
        return original(q, k, cos, sin, *args, **keywords)
    cos, sin = cos.contiguous(), sin.contiguous()
    return Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)


def _same_rotation(original: Any, device: torch.device) -> bool:
    if original is None:
        return False
    q, k = (torch.randn(1, heads, TOKENS, 16, device=device) for heads in (4, 2))
    angles = torch.randn(1, TOKENS, 8, device=device).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    with contextlib.suppress(RuntimeError, TypeError):  # a function of other arguments
        theirs, ours = original(q, k, cos, sin), _rotate(original, q, k, cos, sin)
        return max(map(_apart, ours, theirs)) <= APART
    return False


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """As a share of theirs."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-30))
