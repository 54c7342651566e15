"""Which updates of an adapter fall on which slots.

An adapter follows the checkpoint's modules, the graph those of genai's builder: it fuses Llama's q, k and v, and
splits Phi's gate_up_proj. A slot's update is put together from all that fall on it, exactly: A side by side, B in the
rows (outputs) that belong to the module.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from phicli.architectures import FUSED, in_layer, last, projection
from phicli.checkpoints.peft_folder import Lora
from phicli.errors import BadInput
from phicli.export.slots import Slot

Parts = list[tuple[Lora, slice, slice]]  # update, rows of the slot, the same rows of the update


def match(loras: Mapping[str, Lora], slots: Sequence[Slot], qkv: Sequence[int], source: Path) -> dict[Slot, Parts]:
    """Distribute an adapter's updates over all slots; a slot that none falls on gets an empty list.

    Args:
        loras: full name of a linear -> update. qkv: outputs of q, k and v. source: named in errors.

    Raises:
        BadInput: an update of something that has no slot, or of another shape: an adapter for another model.
    """
    layers: dict[int, dict[str, Lora]] = {}
    for name, lora in loras.items():
        found = in_layer(name)
        if not found:
            raise BadInput(f"{name}: only linears of the layers can be adapted", where=source,
                           hint=f"{_training(source)} --target-modules all-linear")
        layers.setdefault(found[0], {})[projection(last(found[1]))] = lora
    left = {(layer, module) for layer, modules in layers.items() for module in modules}
    matched: dict[Slot, Parts] = {}
    for slot in slots:
        matched[slot] = []
        for module, outputs, rows, columns in _overlaps(slot, qkv):
            if (update := layers.get(slot.layer, {}).get(module)) is not None:
                _check_shape(slot, module, update, outputs, source)
                matched[slot].append((update, rows, columns))
                left.discard((slot.layer, module))
    if left:
        layer, module = min(left)
        raise BadInput(f"the model has no {module} in layer {layer}: an adapter for another model", where=source,
                       hint=f"train one on this model: {_training(source)}")
    return matched


def _training(source: Path) -> str:
    return f"phicli finetune --name {shlex.quote(source.name)}"


def assemble(slot: Slot, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """The slot's matrices in float64: (inputs, rank) and (rank, outputs), rank the sum of the parts' ranks."""
    a = [lora.a.astype(np.float64) for lora, _, _ in parts]
    b = []
    for lora, rows, columns in parts:
        embedded = np.zeros((slot.outputs, lora.rank))
        embedded[rows] = lora.b[columns].astype(np.float64) * lora.scaling
        b.append(embedded)
    return (np.concatenate([np.zeros((0, slot.inputs)), *a]).T,
            np.concatenate([np.zeros((slot.outputs, 0)), *b], axis=1).T)


def _overlaps(slot: Slot, qkv: Sequence[int]) -> Iterator[tuple[str, int, slice, slice]]:
    """Modules that may fall on a slot: name, outputs, rows of the slot, the same rows of the module."""
    whole = slice(None)
    yield slot.module, slot.outputs, whole, whole
    for fused, parts in FUSED.items():
        if slot.module == fused or slot.module in parts:
            share = slot.outputs // len(parts) if slot.module == fused else slot.outputs
            sizes = qkv if fused == "qkv_proj" else [share] * len(parts)
            for i, part in enumerate(parts):
                rows = slice(sum(sizes[:i]), sum(sizes[: i + 1]))
                if slot.module == fused:
                    yield part, sizes[i], rows, whole
                elif slot.module == part:
                    yield fused, sum(sizes), whole, rows


def _check_shape(slot: Slot, module: str, lora: Lora, outputs: int, source: Path) -> None:
    have, need = (lora.a.shape[1], len(lora.b)), (slot.inputs, outputs)
    if have != need:
        raise BadInput(f"{module} of layer {slot.layer} has {have[0]} inputs and {have[1]} outputs in the adapter, "
                       f"{need[0]} and {need[1]} in the model: an adapter for another model", where=source,
                       hint=f"train one on this model: {_training(source)}")
