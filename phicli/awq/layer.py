"""One decoder layer: its inputs measured, its scales and ranges searched, its weights rounded."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from phicli.awq.architectures import Scaling, apply_scale, channels
from phicli.awq.gram import GramSum
from phicli.awq.grid import GridShape, to_weights
from phicli.awq.packing import pack_linear
from phicli.awq.phases import Phases
from phicli.awq.rounding import ROUNDINGS
from phicli.awq.search import output_error, search_clip, search_scale
from phicli.awq.streaming import check_all


def forward(layer: nn.Module, x: Tensor, keywords: dict[str, Any]) -> Tensor:
    """A decoder layer's output for hidden states (rows, length, hidden)."""
    out = layer(x, **keywords)
    return out[0] if isinstance(out, tuple) else out


class _AllSeen(Exception):
    """Ends a layer's forward pass once the inputs of all its linears have been seen."""


class LayerWork:
    """One decoder layer on its way: measured, scaled, rounded.

    names: of the linears to quantize. gram: per linear, float32 (in, in), shared by linears with the same input.
    """

    def __init__(self, layer: nn.Module, prefix: str, shape: GridShape, rounding: str, skip: tuple[str, ...],
                 phase: Phases):
        self.phase = phase
        self.layer, self.prefix, self.shape = layer, prefix, shape
        self.round = ROUNDINGS[rounding]
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
        total = sum(x.shape[0] * x.shape[1] for x in hidden)
        sums: dict[str, GramSum] = {}
        same: dict[str, str] = {}  # linear -> the one that was measured for it: q, k and v read one tensor
        seen: dict[str, Tensor] = {}

        def watch(name: str):
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                x = args[0]
                same[name] = next((other for other, y in seen.items() if y is x), name)
                seen[name] = x
                if same[name] == name:
                    sums.setdefault(name, GramSum(x.shape[-1], total, x.device)).add(x.flatten(0, -2))
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
            means = {name: one.means() for name, one in sums.items()}
            for name in self.names:
                self.gram[name], self.magnitude[name] = means[same[name]]
            check_all({f"the input of {self.prefix}{name}": self.gram[name].sum().isfinite() for name in self.names})

    def scale(self, scalings: tuple[Scaling, ...], config: Any) -> None:
        """Search and apply AWQ's scales; the layer still computes the same function."""
        for scaling in scalings:
            if not all(name in self.names for name in scaling.consumers):
                continue
            with self.phase("scales"):
                first = scaling.consumers[0]
                rows = channels(scaling, self.layer, config).to(self.gram[first].device)
                weight = torch.cat([self.linear(name).weight for name in scaling.consumers])
                share = rows if scaling.kind.startswith("value") else None
                found = search_scale(weight, self.gram[first], self.magnitude[first], self.shape, share)
                apply_scale(scaling, self.layer, found, rows)
                gram = self.gram[first] / found[:, None] / found
                self.gram.update(dict.fromkeys(scaling.consumers, gram))

    def quantize(self) -> tuple[dict[str, Tensor], Tensor]:
        """Put rounded weights in place.

        Returns:
            the checkpoint's tensors of the layer by full name, and the relative output error of its linears,
            float32 () on the device.
        """
        tensors: dict[str, Tensor] = {}
        total = torch.zeros(2, device=next(self.layer.parameters()).device)  # of the error's and the output's squares
        for name in self.names:
            linear = self.linear(name)
            weight, gram = linear.weight.float(), self.gram[name]
            with self.phase("clip"):
                scale, zero = search_clip(weight, gram, self.shape)
            with self.phase("rounding"):
                integers = self.round(weight, gram, scale, zero, self.shape)
            with self.phase("pack"):
                rounded = to_weights(integers, scale, zero, self.shape)
                total += torch.stack([output_error(rounded - weight, gram).sum(), output_error(weight, gram).sum()])
                linear.weight.data = rounded.to(linear.weight.dtype)
                tensors |= {f"{self.prefix}{name}.{k}": v for k, v in pack_linear(integers, scale, zero).items()}
        packed = {f"{self.prefix}{name}.weight" for name in self.names}
        for name, tensor in self.layer.state_dict().items():
            if self.prefix + name not in packed:
                tensors[self.prefix + name] = tensor
        return tensors, (total[0] / total[1].clamp(min=1e-30)).sqrt()
