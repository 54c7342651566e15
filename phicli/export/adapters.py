"""Adapters of an optimized model: from a PEFT folder to an .onnx_adapter file, and checking such a file.

onnxruntime-genai takes an adapter that covers only some layers in silence, and errors of shape show only when a token
is generated. So a file always holds every tensor of every slot, rank 0 where the adapter does nothing, and
`check_adapter` looks at all of it before genai does.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phicli.artifacts.names import ADAPTER_SUFFIX, ADAPTERS
from phicli.checkpoints.peft_folder import Lora
from phicli.errors import BadInput
from phicli.export import graph_inputs, resident
from phicli.export.genai_config import read_config
from phicli.export.graph_file import read_model
from phicli.export.matching import assemble, match
from phicli.export.slots import LAYOUT_KEY, MODEL, Slot, read_graph, read_slots
from phicli.export.token_cache import channels


def convert_adapter(model: Path, loras: dict[str, Lora], file: Path, source: Path) -> None:
    """Write the file of an adapter for an optimized model.

    Args:
        model: the ONNX folder. loras: as `read_peft` gives them. file: to write. source: named in errors.

    Raises:
        BadInput: the adapter is one for another model.
    """
    tensors: dict[str, np.ndarray] = {}
    for slot, parts in match(loras, _slots(model), qkv_sizes(model), source).items():
        tensors |= graph_inputs.tensors(slot, *assemble(slot, parts))
    overflown = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if overflown:
        raise BadInput(f"{overflown[0]}: values that are not finite, or too large for the model's float type",
                       where=source)
    write_tensors(file, tensors)


def check_adapter(onnx_folder: Path, file: Path) -> None:
    """Check an adapter's file against a model: names, shapes, types, every layer covered.

    Raises:
        BadInput: missing or damaged, or not of this model.
    """
    have = _read(file)
    properties, _ = read_graph(onnx_folder)
    if properties[LAYOUT_KEY] in resident.GRAPHS:
        _check_resident(properties[LAYOUT_KEY], resident.installed(properties, onnx_folder), file)
        return
    need = {name: (slot, shape) for slot in _slots(onnx_folder) for name, shape in graph_inputs.shapes(slot).items()}
    missing, strange = sorted(need.keys() - have.keys()), sorted(have.keys() - need.keys())
    hint = _again(file)
    if missing or strange:
        what = f"lacks {_some(missing)}" if missing else f"has {_some(strange)}, which the model has not"
        raise BadInput(f"an adapter for another model: it {what}", where=file, hint=hint)
    ranks: dict[Slot, set[int]] = {}
    for name, (slot, shape) in need.items():
        dims, elem_type = have[name]
        if len(dims) != len(shape) or any(n not in (None, m) for n, m in zip(shape, dims, strict=True)):
            wanted = ["any" if n is None else n for n in shape]
            raise BadInput(f"an adapter for another model: {name} is {list(dims)}, not {wanted}", where=file, hint=hint)
        if elem_type != slot.elem_type:
            raise BadInput(f"{name} has another number type than the model", where=file, hint=hint)
        ranks.setdefault(slot, set()).update(m for n, m in zip(shape, dims, strict=True) if n is None)
    torn = [slot.name for slot, found in ranks.items() if len(found) > 1]
    if torn:
        raise BadInput(f"the matrices of {_some(torn)} differ in rank", where=file, hint=hint)


def install_adapters(folder: Path, adapters: Mapping[str, Mapping[str, Lora]], layout: str, weights: str) -> None:
    """Write the graph that holds these adapters, and the adapters' files, into the folder of a graph without.

    layout, weights, and what is raised: as `resident.install`.
    """
    resident.install(folder, adapters, qkv_sizes(folder), layout, weights)
    (folder / ADAPTERS).mkdir(exist_ok=True)
    for position, name in enumerate(adapters):
        write_tensors(folder / ADAPTERS / (name + ADAPTER_SUFFIX), resident.adapter_tensors(layout, position))


def write_held(properties: Mapping[str, str], name: str, file: Path) -> bool:
    """Write the file of an adapter that a graph holds itself; False where it does not hold that one.

    properties: metadata of the graph. With the file the graph's own state of the adapter runs, whatever lies beside it.
    """
    layout = properties.get(LAYOUT_KEY, "")
    names = resident.installed(properties, file) if layout in resident.GRAPHS else []
    if name in names:
        write_tensors(file, resident.adapter_tensors(layout, names.index(name)))
    return name in names


def _check_resident(layout: str, names: list[str], file: Path) -> None:
    import onnxruntime

    name = file.name.removesuffix(ADAPTER_SUFFIX)
    found = {k: v.numpy().tolist() for k, v in
             onnxruntime.AdapterFormat.read_adapter(str(file)).get_parameters().items()}
    wanted = resident.adapter_tensors(layout, names.index(name)) if name in names else {}
    if found != {k: v.tolist() for k, v in wanted.items()}:
        raise BadInput("not an adapter of this model, which holds its adapters itself", where=file,
                       hint=_again(file))


def _slots(folder: Path) -> list[Slot]:
    """The slots of a model of the layout "inputs"; raises BadInput: another one."""
    name, slots = read_slots(folder)
    if name != graph_inputs.NAME:
        raise BadInput(f"adapter slots of an unknown layout '{name}'", where=folder, hint="phicli optimize --force")
    return slots


def qkv_sizes(folder: Path) -> tuple[int, int, int]:
    """Outputs of q, k and v, which the graph may hold as one projection."""
    decoder = read_config(folder)["model"]["decoder"]
    path = next(path for path in (folder / resident.BASE, folder / MODEL) if path.is_file() or path.name == MODEL)
    size = channels(decoder["head_size"], read_model(path).graph)
    q, kv = (decoder[f"num_{kind}_heads"] * size for kind in ("attention", "key_value"))
    return q, kv, kv


def write_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    import onnxruntime

    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters({k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in tensors.items()})
    adapter.export_adapter(str(file))


def adapter_tensors_of(file: Path) -> dict[str, np.ndarray]:
    """What an adapter's file holds. Raises BadInput: no such file, or a damaged one."""
    return {name: value.numpy() for name, value in _parameters(file).items()}


def _read(file: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and ONNX element type of each tensor in an adapter's file."""
    return {name: (tuple(value.shape()), value.element_type()) for name, value in _parameters(file).items()}


def _parameters(file: Path) -> dict[str, Any]:
    import onnxruntime

    if not file.is_file():
        raise BadInput("no such adapter file", where=file)
    try:
        return onnxruntime.AdapterFormat.read_adapter(str(file)).get_parameters()
    except Exception as e:
        raise BadInput(f"damaged adapter: {str(e).splitlines()[0]}", where=file,
                       hint=_again(file)) from None


def _again(file: Path) -> str:
    """The command that writes an adapter's file anew, from the adapter's PEFT folder."""
    return f"phicli optimize --adapter {shlex.quote(file.name.removesuffix(ADAPTER_SUFFIX))}=FOLDER"


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
