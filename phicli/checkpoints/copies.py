"""Copies of a model's embeddings that PEFT has saved beside an adapter: of no use where they are the model's own."""

from pathlib import Path
from typing import Any

import numpy as np

from phicli.artifacts.tensors import check_safetensors
from phicli.checkpoints.adapter_names import COPY, HEADS, plain
from phicli.checkpoints.adapter_settings import NoSlot
from phicli.checkpoints.peft_folder import check_weights, weights_path
from phicli.checkpoints.tensors import read_tensor
from phicli.hub.models import weight_files

ROWS = 4096  # compared at a time
CLOSE = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-10, "F64": 2.0**-10}  # a number rounded twice, to such a type


def check_copies(adapter: Path, model: Path) -> list[str]:
    """Compare the embeddings and output projection in an adapter's file with a checkpoint's.

    Rows beyond the checkpoint's, of tokens that were added to the vocabulary, are not compared.

    Returns:
        remarks for people.

    Raises:
        NoSlot: one is not the checkpoint's: it was trained, or is another model's.
    """
    remarks = []
    for name, entry in check_weights(adapter).items():
        found = COPY.fullmatch(plain(name))
        if not found:
            continue
        own, own_entry = _own(model, found["module"])
        if own_entry is None or own_entry["shape"][1:] != entry["shape"][1:]:
            raise NoSlot(f"{name} is of another size than the model's", adapter)
        shared = min(entry["shape"][0], own_entry["shape"][0])
        near = CLOSE[entry["dtype"] if entry["dtype"] == "BF16" else own_entry["dtype"]]
        for start in range(0, shared, ROWS):
            rows = slice(start, min(start + ROWS, shared))
            theirs, ours = (read_tensor(file, one, rows).astype(np.float32)
                            for file, one in ((weights_path(adapter), entry), (own, own_entry)))
            if not np.allclose(theirs, ours, rtol=near, atol=1e-7):
                raise NoSlot(f"{name} is not the model's own: it was trained", adapter)
        if more := entry["shape"][0] - shared:
            remarks.append(f"{name} has {more} rows more than the model, of tokens that it does not know: left out")
    return remarks


def _own(model: Path, module: str) -> tuple[Path, Any]:
    """The file and header entry of the checkpoint's tensor; of a tied output projection, those of the embedding."""
    there = {}
    for path in weight_files(model):
        for name, entry in check_safetensors(path).items():
            if found := COPY.fullmatch(name):
                there[found["module"]] = path, entry
    embeddings = [name for name in there if name not in HEADS]
    if module in HEADS and module not in there and embeddings:
        module = embeddings[0]
    return there.get(module, (model, None))
