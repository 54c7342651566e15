"""One decoder layer: its inputs measured, its scales and ranges searched, its weights rounded."""

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from phicli.architectures import Scaling
from phicli.checkpoints.awq import pack_linear
from phicli.hardware.devices import cpu_takes_bfloat16
from phicli.hardware.ranks import Ranks
from phicli.quantization.gram import GramSum
from phicli.quantization.grid import Grid, GridShape, to_weights
from phicli.quantization.phases import Phases
from phicli.quantization.plan import LayerPlan
from phicli.quantization.rounding import ROUNDINGS
from phicli.quantization.scaling import apply_scale, channels
from phicli.quantization.search import output_error, search_clip, search_scale
from phicli.quantization.streaming import check_all
from phicli.quantization.streams import side_by_side
from phicli.workflow.wording import worded


def forward(layer: nn.Module, x: Tensor, keywords: dict[str, Any]) -> Tensor:
    """A decoder layer's output for hidden states (rows, length, hidden); its products in bfloat16 where a CPU does that
    faster and nothing is trained, sums in float32.
    """
    faster = x.device.type == "cpu" and not torch.is_grad_enabled() and cpu_takes_bfloat16(x.shape[-1])
    with worded("transformers cannot run a layer of this model"), torch.autocast("cpu", torch.bfloat16, faster):
        out = layer(x, **keywords)
    return (out[0] if isinstance(out, tuple) else out).to(x.dtype)


class _AllSeen(BaseException):
    """Ends a layer's forward pass once the inputs of all its linears have been seen; no fault to be put into words."""


class LayerWork:
    """One decoder layer on its way: measured, scaled, rounded.

    names: of the linears to quantize. gram: per linear, float32 (in, in), shared by linears with the same input.
    ranks: processes that share the work out; each has the whole layer, and its share of the calibration.
    """

    def __init__(self, layer: nn.Module, prefix: str, shape: GridShape, skip: tuple[str, ...], phase: Phases,
                 ranks: Ranks | None = None):
        self.phase, self.ranks = phase, ranks or Ranks()
        self.layer, self.prefix, self.shape = layer, prefix, shape
        self.names = [
            name for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and not any(part in prefix + name for part in skip)
            and module.in_features % shape.group_size == 0 and module.out_features % 8 == 0
        ]
        self.gram: dict[str, Tensor] = {}
        self.magnitude: dict[str, Tensor] = {}

    def linear(self, name: str) -> nn.Linear:
        return self.layer.get_submodule(name)  # type: ignore[return-value]

    def collect(self, hidden: list[Tensor], keywords: dict[str, Any]) -> None:
        """Run the calibration through, as far as the last linear, and sum up each linear's inputs."""
        total = int(self.ranks.add(sum(x.shape[0] * x.shape[1] for x in hidden), hidden[0].device))
        sums: dict[str, GramSum] = {}
        same: dict[str, str] = {}  # linear -> the one that was measured for it: q, k and v read one tensor
        seen: dict[str, Tensor] = {}

        def watch(name: str):
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                x = args[0]
                same[name] = next((other for other, y in seen.items() if y is x), name)
                seen[name] = x
                if same[name] == name:
                    if name not in sums:
                        sums[name] = GramSum(x.shape[-1], total, x.device)
                    sums[name].add(x.flatten(0, -2))
                if len(seen) == len(self.names):
                    raise _AllSeen

            return hook

        hooks = [self.linear(name).register_forward_pre_hook(watch(name)) for name in self.names]
        with self.phase("collect"):
            for x in hidden:
                seen.clear()
                with suppress(_AllSeen):
                    forward(self.layer, x, keywords)
            for hook in hooks:
                hook.remove()
            for one in sums.values():
                self.ranks.add_up(one.sum, one.absolute)
            means = {name: one.means() for name, one in sums.items()}
            for name in self.names:
                self.gram[name], self.magnitude[name] = means[same[name]]
            check_all({f"the input of {self.prefix}{name}": self.gram[name].sum().isfinite() for name in self.names})

    def scalings(self, known: Iterable[Scaling]) -> list[Scaling]:
        """Those of the architecture's scalings whose consumers are all quantized."""
        return [scaling for scaling in known if all(name in self.names for name in scaling.consumers)]

    def producers(self, known: Iterable[Scaling]) -> set[str]:
        return {scaling.producer for scaling in self.scalings(known)}

    def search(self, known: Iterable[Scaling], config: Any) -> LayerPlan:
        """Search scales and clipped ranges, on what `collect` measured. The scales are applied on the way."""
        plan = LayerPlan()
        for scaling in self.scalings(known):
            with self.phase("scales"):
                first = scaling.consumers[0]
                rows = channels(scaling, self.layer, config).to(self.gram[first].device)
                share = rows if scaling.kind.startswith("value") else None
                found = search_scale(self._stacked(scaling.consumers), self.gram[first], self.magnitude[first],
                                     self.shape, share, self.ranks)
                plan.scales[scaling.producer] = found
                self._apply(scaling, found, rows)
        for names in self._by_input():
            with self.phase("clip"):
                weight, sizes = self._stacked(names).float(), [self.linear(name).out_features for name in names]
                own = self.ranks.part(len(weight))
                scale, zero = (self.ranks.whole(each, len(weight), own)
                               for each in search_clip(weight[own], self.gram[names[0]], self.shape))
                plan.grids |= zip(names, zip(scale.split(sizes), zero.split(sizes), strict=True), strict=True)
        return plan

    def apply_scales(self, plan: LayerPlan, known: Iterable[Scaling], config: Any) -> None:
        """Apply a plan's scales; the layer still computes the same function."""
        for scaling in self.scalings(known):
            scale = plan.scales[scaling.producer]
            self._apply(scaling, scale, channels(scaling, self.layer, config).to(scale.device))

    def _apply(self, scaling: Scaling, scale: Tensor, rows: Tensor) -> None:
        apply_scale(scaling, self.layer, scale, rows)
        if self.gram:
            gram = self.gram[scaling.consumers[0]] / scale[:, None] / scale
            self.gram.update(dict.fromkeys(scaling.consumers, gram))

    def round(self, plan: LayerPlan, rounding: str) -> dict[str, Grid]:
        """Integers for the weights on a plan's grids, by linear; the weights stay as they are."""
        grids: dict[str, Grid] = {}
        groups = sorted(self._by_input(), key=lambda names: -self.linear(names[0]).in_features)  # the longest first
        given = [self._given(names, plan) for names in groups]
        with self.phase("rounding"):
            jobs = [partial(ROUNDINGS[rounding], *each, self.shape) for each in given]
            found = side_by_side(jobs, next(self.layer.parameters()).device)
            for names, part in zip(groups, found, strict=True):
                sizes = [self.linear(name).out_features for name in names]
                integers = self._whole(part, sum(sizes)).split(sizes)
                grids |= {name: (own, *plan.grids[name]) for name, own in zip(names, integers, strict=True)}
        return grids

    def _whole(self, integers: Tensor, rows: int) -> Tensor:
        """All rows of integers, float32, of which this process has its part."""
        if self.ranks.alone:
            return integers
        return self.ranks.whole(integers.to(torch.uint8), rows, self.ranks.part(rows)).float()

    def put(self, grids: dict[str, Grid]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Put rounded weights in place.

        Returns:
            the checkpoint's tensors of the layer by full name, in the first process, and the relative output error of
            its linears, float32 () on the device; None where `collect` has measured nothing.
        """
        tensors: dict[str, Tensor] = {}
        total = torch.zeros(2, device=next(self.layer.parameters()).device)  # squares of the error and of the output
        with self.phase("pack"):
            for name, (integers, scale, zero) in grids.items():
                linear, gram = self.linear(name), self.gram.get(name)
                rounded, weight = to_weights(integers, scale, zero, self.shape), linear.weight.float()
                if gram is not None:
                    own = self.ranks.part(len(weight))
                    both = rounded[own] - weight[own], weight[own]
                    total += torch.stack([output_error(part, gram).sum() for part in both])
                linear.weight.data = rounded.to(linear.weight.dtype)
                if self.ranks.first:
                    packed = pack_linear(integers, scale, zero)
                    tensors |= {f"{self.prefix}{name}.{kind}": tensor for kind, tensor in packed.items()}
            self.ranks.add_up(total)
        done = {f"{name}.weight" for name in self.names}
        tensors |= {self.prefix + name: t for name, t in self.layer.state_dict().items() if name not in done}
        return tensors, (total[0] / total[1].clamp(min=1e-30)).sqrt() if self.gram or not self.names else None

    def _given(self, names: list[str], plan: LayerPlan) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Of linears that read the same input: this process's rows of the weight, Gram matrix, scale and zero point."""
        scale, zero = (torch.cat(parts) for parts in zip(*(plan.grids[name] for name in names), strict=True))
        own = self.ranks.part(len(scale))
        return self._stacked(names)[own].float(), self.gram.get(names[0]), scale[own], zero[own]

    def _stacked(self, names: Iterable[str]) -> Tensor:
        return torch.cat([self.linear(name).weight for name in names])

    def _by_input(self) -> list[list[str]]:
        """The linears to quantize, those that have one Gram matrix together."""
        together: dict[Any, list[str]] = {}
        for name in self.names:
            together.setdefault(id(self.gram[name]) if self.gram else name, []).append(name)
        return list(together.values())
