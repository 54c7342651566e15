"""A frozen base that several processes hold together, each a part of every layer, so that it need not fit one GPU.

Layers are torch's `fully_shard` (FSDP2, Zhao et al., 2023, arXiv:2304.11277), with the packed integers as parameters: a
layer's parts are gathered before it is used, forward and backward, while the layer before computes, and dropped after.
Embedding and output projection are matrices of their own, which layers' hooks do not suit: they are gathered once a
pass, however many times the projection is used in it. The adapter stays whole in each process.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from phicli.checkpoints.int4 import Int4Linear
from phicli.checkpoints.loading import empty_base, load_base
from phicli.errors import BadInput
from phicli.hardware.devices import available_memory
from phicli.hardware.ranks import Ranks
from phicli.resources.estimates import activation_bytes
from phicli.resources.sizes import size_of_config

ACTIVATIONS_SHARE = 0.5  # of the memory that is free once the base is there
GATHER = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)  # its name before torch 2.13


def load_once(folder: Path, dtype: torch.dtype, ranks: Ranks) -> PreTrainedModel:
    """The base on the CPU in the first process, in the others without content: `shard` gives them theirs.

    Raises:
        As `load_base`.
    """
    return load_base(folder, "cpu", dtype, unpacked=False) if ranks.first else empty_base(folder, dtype)


class Shards:
    """A model, adapter and all, on the devices of all processes: each has its part of what is frozen.

    Args:
        adapted: a PeftModel whose base `load_once` has loaded. tokens: of a process's rows of a step, at most.

    Attributes:
        twice: whether layers are better computed twice, as these tokens' activations may not fit.

    Raises:
        BadInput: an architecture without layers that could be shared out.
    """

    def __init__(self, adapted: Any, device: str, ranks: Ranks, tokens: int):
        base = adapted.get_base_model()
        layers = [m for m in base.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers:
            raise BadInput(f"{type(base).__name__} has no layers that can be shared out to GPUs", where="--shard")
        mesh, filling = init_device_mesh(device, (ranks.count,)), _Filling(adapted, torch.device(device), ranks)
        for layer in layers:
            filling.fill(layer)
            for module in layer.modules():
                if isinstance(module, Int4Linear):
                    module.hold_as_parameters()
            fully_shard(layer, mesh=mesh, ignored_params=_trained(layer))
        self.matrices: dict[nn.Parameter, _Matrix] = {}
        for module in (base.get_input_embeddings(), base.get_output_embeddings()):
            if module is not None:
                filling.fill(module)
                if module.weight not in self.matrices:  # tied, they are one
                    self.matrices[module.weight] = _Matrix(module.weight, ranks)
                module.register_forward_pre_hook(lambda module, _: self.matrices[module.weight].gather())
        base.get_input_embeddings().register_forward_hook(lambda *_: self.drop())
        filling.fill(adapted)
        root = base.get_decoder() or base  # in which layers know their order, to be gathered ahead
        fully_shard(root, mesh=mesh, ignored_params=_trained(adapted) | set(self.matrices))
        self.twice = ranks.of_first(lambda: _is_short(base.config, tokens, device))

    def drop(self) -> None:
        """Let go of embedding and output projection, if they are gathered."""
        for matrix in self.matrices.values():
            matrix.drop()


class _Matrix:
    """A frozen matrix of which each process has some rows."""

    def __init__(self, parameter: nn.Parameter, ranks: Ranks):
        self.parameter, self.shape, self.count = parameter, parameter.shape, ranks.count
        rows = -(-len(parameter) // ranks.count)
        mine = parameter.data[rows * ranks.number : rows * (ranks.number + 1)]
        self.mine, self.gathered = mine.new_zeros(rows, *self.shape[1:]), False
        self.mine[: len(mine)] = mine
        self.drop()

    def gather(self) -> None:
        if not self.gathered:
            whole = self.mine.new_empty(len(self.mine) * self.count, *self.shape[1:])
            GATHER(whole, self.mine)
            self.parameter.data, self.gathered = whole[: self.shape[0]], True

    def drop(self) -> None:
        self.parameter.data, self.gathered = self.mine.new_zeros(()).expand(self.shape), False


class _Filling:
    """Gives the modules of a model their tensors, on this process's device, from the first process."""

    def __init__(self, adapted: nn.Module, device: torch.device, ranks: Ranks):
        self.device, self.ranks, self.filled = device, ranks, set[nn.Module]()
        self.names = {module: name for name, module in adapted.named_modules()}
        self.known = ranks.of_first(lambda: _describe(adapted))
        self.given: dict[str, Tensor] = {}  # those that have several names
        self.shared = {first for name, (_, _, first) in self.known.items() if name != first}

    def fill(self, root: nn.Module) -> None:
        """Fill the modules in `root` that are not filled yet."""
        for module in [module for module in root.modules() if module not in self.filled]:
            self.filled.add(module)
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    if tensor is not None:
                        kind[name] = self._given(f"{self.names[module]}.{name}", tensor)  # type: ignore[assignment]

    def _given(self, name: str, tensor: Tensor) -> Tensor:
        shape, dtype, first = self.known[name]
        if first in self.given:
            return self.given[first]
        new = torch.empty(shape, dtype=dtype, device=self.device)
        if self.ranks.first:
            new.copy_(tensor.detach())
        self.ranks.same(new)
        new = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        if first in self.shared:
            self.given[first] = new
        return new


def _describe(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, str]]:
    """Of each tensor, by name: shape, dtype, and the first name that it has, where it is the same as another."""
    first: dict[int, str] = {}
    found = {}
    for place, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                name = f"{place}.{name}"
                found[name] = tensor.shape, tensor.dtype, first.setdefault(id(tensor), name)
    return found


def _is_short(config: Any, tokens: int, device: str) -> bool:
    size = size_of_config(config.to_dict(), "its config")
    kept = activation_bytes(size, tokens, 2 if device == "cuda" else 4) if size else 0
    return kept > ACTIVATIONS_SHARE * available_memory(device)


def _trained(model: nn.Module) -> set[nn.Parameter]:
    return {parameter for parameter in model.parameters() if parameter.requires_grad}
