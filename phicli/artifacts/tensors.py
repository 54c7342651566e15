"""Reading the header of a safetensors file: every byte of its data belongs to one tensor, every name to one entry."""

import math
import struct
from pathlib import Path
from typing import Any

from phicli.artifacts.reading import open_regular, parse_json
from phicli.errors import BadInput

DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16,
              "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}  # of safetensors
LONGEST = 100 << 20  # bytes of a header, as in the library


def check_safetensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file's header and check that its tensors fill the file, side by side and without holes.

    Returns:
        tensor name -> {"dtype", "shape", "data_offsets"}.

    Raises:
        BadInput: truncated or damaged, a name twice, tensors that overlap, no regular file.
    """
    try:
        with open_regular(path) as f:
            size = f.seek(0, 2)
            f.seek(0)
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(size, LONGEST):
                raise ValueError("header longer than the file")
            header = parse_json(f.read(length).decode("utf-8"), path)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            _check_entry(name, entry)
        end = 8 + length + _data_bytes(header)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as e:
        raise BadInput(f"damaged safetensors file: {e}", where=path) from None
    if end != size:
        what = "truncated" if size < end else "longer than it says"
        raise BadInput(f"{what}: {size} bytes, its header says {end}", where=path)
    return header


def _check_entry(name: str, entry: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError for a tensor whose shape and place do not go together."""
    begin, end = entry["data_offsets"]
    numbers = [begin, end, *entry["shape"]]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in numbers) or begin > end:
        raise ValueError(f"{name}: no shape or place in the file")
    width = DTYPE_BITS.get(entry["dtype"])
    if width and math.prod(entry["shape"]) * width != 8 * (end - begin):
        raise ValueError(f"{name}: {entry['dtype']} {entry['shape']} are not {end - begin} bytes")


def _data_bytes(header: dict[str, Any]) -> int:
    """Bytes of all tensors. Raises ValueError where two overlap, or where bytes between them belong to none."""
    reached = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin != reached:
            raise ValueError(f"{name} {'overlaps with another tensor' if begin < reached else 'comes after a hole'}")
        reached = end
    return reached
