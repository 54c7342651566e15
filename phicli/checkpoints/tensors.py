"""Tensors of safetensors files as arrays: mapped, not read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from phicli.errors import BadInput

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}


def read_tensor(path: Path, entry: Mapping[str, Any], rows: slice = slice(None), content: np.ndarray | None = None
                ) -> np.ndarray:
    """Rows of a tensor of a safetensors file, by its entry in the header, with bfloat16 as float32.

    content: the file's bytes, for those who read many tensors.

    Raises:
        BadInput: a type that is not floating-point.
    """
    if entry["dtype"] not in DTYPES:
        raise BadInput(f"{entry['dtype']} is no floating-point type", where=path)
    content = mapped(path) if content is None else content
    start = 8 + int(content[:8].view("<u8")[0])
    begin, end = (start + offset for offset in entry["data_offsets"])
    found = np.frombuffer(content[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])[rows]
    return found.astype(np.float32) if entry["dtype"] == "BF16" else found  # numpy itself knows no bfloat16


def mapped(path: Path) -> np.ndarray:
    """A file's bytes, which are read when they are used."""
    return np.memmap(path, np.uint8, "r").view(np.ndarray)  # parts of a memmap itself take longer to make
