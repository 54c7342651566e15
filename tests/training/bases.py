"""Small, quick quantized models."""

from pathlib import Path

from phicli import quantize

QUICK = {"samples": 8, "seq_len": 64, "rounding": "nearest", "device": "cpu"}


def quantized(model: Path, root: Path, **changes) -> Path:
    """What `phicli quantize` makes of a model with little calibration."""
    return quantize(model, **{"root": root, **QUICK, **changes}).folder
