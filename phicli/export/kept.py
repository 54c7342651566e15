"""Reading an adapter back out of an optimized model, for one whose PEFT folder is gone: what `match` can place again.

Numbers come as the model has them: of its float type, or of 8 bits.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from phicli.architectures import FUSED
from phicli.artifacts.names import ADAPTER_SUFFIX, ADAPTERS
from phicli.checkpoints.peft_folder import Lora
from phicli.errors import BadInput
from phicli.export import fused, masked, resident
from phicli.export.adapters import adapter_tensors_of
from phicli.export.matrices import from_blocks, from_eight_bits
from phicli.export.slots import LAYOUT_KEY, Slot, find_slots, read_graph

Update = tuple[np.ndarray, dict[Slot, np.ndarray]]  # A, (rank, inputs), and B of each slot, (outputs, rank)


def read_adapter(folder: Path, name: str) -> dict[str, Lora]:
    """The updates of an adapter in a model folder, by names that `match` knows.

    Raises:
        BadInput: a damaged model, or no such adapter in it.
    """
    properties, graph = read_graph(folder)
    layout = properties[LAYOUT_KEY]
    slots = {slot.name: slot for slot, _ in find_slots(graph)}
    if layout not in resident.GRAPHS:
        updates = _from_file(adapter_tensors_of(folder / ADAPTERS / (name + ADAPTER_SUFFIX)), slots)
    else:
        names = resident.installed(properties, folder)
        if name not in names:
            raise BadInput(f"no adapter '{name}' in the model", where=folder)
        read = _from_fused if layout == "fused" else _from_masked
        updates = read(_Constants(graph, folder), graph, slots, names.index(name))
    return {module: lora for update in updates for module, lora in _loras(*_trimmed(*update)).items()}


class _Constants:
    """A graph's constants by name."""

    def __init__(self, graph: Any, folder: Path):
        self.tensors, self.folder = {tensor.name: tensor for tensor in graph.initializer}, folder

    def __getitem__(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.tensors[name], base_dir=str(self.folder))

    def matrix(self, name: str) -> np.ndarray:
        """(inputs, outputs), of floats or of 8 bits for MatMulNBits."""
        if name in self.tensors:
            return self[name].astype(np.float32)
        return from_eight_bits(self[f"{name}.int8"], self[f"{name}.scales"])


def _from_file(tensors: dict[str, np.ndarray], slots: dict[str, Slot]) -> Iterator[Update]:
    for name, slot in slots.items():
        yield tensors[f"lora_A.{name}"].T, {slot: tensors[f"lora_B.{name}"].T}


def _from_fused(constants: _Constants, graph: Any, slots: dict[str, Slot], position: int) -> Iterator[Update]:
    own = [node for node in graph.node if node.domain == fused.DOMAIN]
    for down in (node for node in own if node.op_type == "LoraDown"):
        columns = _lists(down)["ranks"]
        start, width = sum(columns[:position]), columns[position]
        name = down.input[2]
        a = from_blocks(constants[name], slots[name.removeprefix("lora_A.")].inputs, 1)[start : start + width]
        parts = {}
        for node in (node for node in own if node.op_type != "LoraDown" and node.input[1] == down.output[0]):
            given = _lists(node)
            for b, ends in zip(node.input[3::2], ("ends", "ends2"), strict=False):
                slot, data, rank = slots[b.removeprefix("lora_B.")], constants[b], given["ranks"][position]
                widths = [slot.outputs * (n + 4 * (data.dtype == np.uint8)) for n in given["ranks"]]
                mine = data[sum(widths[:position]) :][: widths[position]]
                found = from_blocks(mine, rank, fused.lanes(slot))
                parts[slot] = _spread(found, given.get(ends, [slot.outputs]), width)
        yield a, parts


def _lists(node: Any) -> dict[str, list[int]]:
    return {attribute.name: list(attribute.ints) for attribute in node.attribute}


def _spread(b: np.ndarray, ends: list[int], width: int) -> np.ndarray:
    """B, (outputs, rank), whose outputs read columns of their own, for all columns: (outputs, width)."""
    whole, rank = np.zeros((len(b), width), b.dtype), b.shape[1]
    for number, (start, end) in enumerate(pairwise([0, *ends])):
        whole[start:end, number * rank : (number + 1) * rank] = b[start:end]
    return whole


def _from_masked(constants: _Constants, graph: Any, slots: dict[str, Slot], position: int) -> Iterator[Update]:
    if masked.TABLE not in constants.tensors:
        return  # adapters that do nothing
    mine = np.flatnonzero(constants[masked.TABLE][position + 1, 0])
    by_group: dict[str, list[str]] = {}
    for node in graph.node:
        for name in (name.removesuffix(".int8") for name in node.input[1:2] if name.startswith("lora_B.")):
            by_group.setdefault(node.input[0].removeprefix("lora.").removesuffix(".masked"), []).append(name)
    for group, names in by_group.items():
        parts = {slots[name.removeprefix("lora_B.")]: constants.matrix(name)[mine].T for name in names}
        yield constants.matrix(f"lora_A.{group}")[:, mine].T, parts


def _trimmed(a: np.ndarray, parts: dict[Slot, np.ndarray]) -> Update:
    """Without the columns that only fill up."""
    used = np.abs(a).max(1, initial=0) + sum(np.abs(b).max(0, initial=0) for b in parts.values()) > 0
    return a[used], {slot: b[:, used] for slot, b in parts.items()}


def _loras(a: np.ndarray, parts: dict[Slot, np.ndarray]) -> dict[str, Lora]:
    """Projections that the graph splits are put together again, so that they share A as they did."""
    if not len(a):
        return {}
    of = {slot.module: b for slot, b in parts.items()}
    for whole, modules in FUSED.items():
        if of.keys() == set(modules):
            of = {whole: np.concatenate([of[module] for module in modules])}
    layer = next(iter(parts)).layer
    return {f"layers.{layer}.{module}": Lora(a, b, 1.0) for module, b in of.items()}
