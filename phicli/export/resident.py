"""Adapters that live in the graph: the matrices of all are constants, and an adapter's file only says which are meant.

What genai hands to a model as an adapter it copies to the GPU at every token, so an adapter given as graph inputs costs
its whole size each time. Here an adapter's file carries a number or two that the graph takes from the CPU, so that
nothing is copied, and a CUDA graph, which genai captures anew for each generator, has the choice built in.

Adapters lie in a file of their own. Adding one writes that file and the graph; the base's weights stay as they are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phicli.checkpoints.peft_folder import Lora
from phicli.errors import BadInput
from phicli.export.fused import FusedGraph
from phicli.export.graph_file import read_model
from phicli.export.groups import Columns, Group
from phicli.export.masked import MaskedGraph
from phicli.export.matching import match
from phicli.export.matrices import MatrixFile
from phicli.export.slots import LAYOUT_KEY, MODEL, Slot, find_slots

# The layouts: of onnxruntime's ops alone; with two of our own.
GRAPHS: dict[str, type[MaskedGraph | FusedGraph]] = {"resident": MaskedGraph, "fused": FusedGraph}
BASE = "base.onnx"  # the graph without adapters, on the same weights
NAMES_KEY = "phicli.adapters"  # in the model's metadata: names in the order of their numbers, as JSON
DATA = "adapters.data-"  # files of matrices begin so


def install(folder: Path, adapters: Mapping[str, Mapping[str, Lora]], qkv: Sequence[int],
            layout: str = "resident", weights: str = "float") -> None:
    """Write a graph that holds these adapters, and their matrices, into a folder.

    Args:
        folder: holds the graph without adapters (`BASE`). adapters: name -> updates as `read_peft` gives them.
        qkv: outputs of q, k and v. layout: one of `GRAPHS`.
        weights: "float" (the model's type, or fp16 where fused) or "int8", see `eight_bits`; the latter not for layout
            "fused" in a model of fp16.

    Raises:
        BadInput: an adapter for another model, values that the float type cannot hold, or sizes that the layout
            cannot take.
    """
    import onnx

    model = read_model(folder / BASE)
    found = list(find_slots(model.graph))
    if not found:
        raise BadInput("the builder's graph has no projections that adapters could be added to", where=folder / BASE)
    slots = [slot for slot, _ in found]
    matched = {name: match(loras, slots, qkv, Path(name)) for name, loras in adapters.items()}
    by_input: dict[str, list[tuple[Slot, Any]]] = {}
    for slot, node in found:
        by_input.setdefault(node.input[0], []).append((slot, node))
    groups = [Group.of(members, matched) for members in by_input.values()]
    kind = GRAPHS[layout]
    columns = Columns.of({name: max((group.ranks[name] for group in groups), default=0) for name in matched}, kind.STEP)
    if columns.width:
        # A name of its own for each set of adapters: the graph of before keeps its matrices until it is replaced.
        with MatrixFile(folder / f"{DATA}{_digest(adapters)}") as data:
            graph = kind(model, columns, data, weights)
            for group in groups:
                if any(group.ranks.values()):
                    graph.add(group)
            graph.write()
    properties = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(model, properties | {LAYOUT_KEY: layout, NAMES_KEY: json.dumps([*adapters])})
    onnx.save(model, str(folder / MODEL))


def adapter_tensors(layout: str, position: int) -> dict[str, np.ndarray]:
    """What the file of the adapter at a position (from 0) carries."""
    return GRAPHS[layout].adapter_tensors(position)


def installed(properties: Mapping[str, str], where: Path) -> list[str]:
    """Names of the adapters in a graph, from its metadata. Raises BadInput: damaged."""
    try:
        names = json.loads(properties[NAMES_KEY])
        if not isinstance(names, list):
            raise ValueError(names)
    except (KeyError, ValueError):
        raise BadInput("no list of the adapters in it", where=where, hint="phicli optimize --force") from None
    return names


def _digest(adapters: Mapping[str, Mapping[str, Lora]]) -> str:
    digest = hashlib.sha256()
    for name, loras in adapters.items():
        for module, lora in sorted(loras.items()):
            digest.update(f"{name}\0{module}\0{lora.scaling}\0".encode())
            digest.update(np.ascontiguousarray(lora.a).data)
            digest.update(np.ascontiguousarray(lora.b).data)
    return digest.hexdigest()[:12]
