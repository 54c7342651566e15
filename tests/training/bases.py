"""Small, quick quantized models."""

from pathlib import Path

from phicli.settings import Settings
from phicli.steps.quantize import quantize

NAMES = ("model", "output", "device", "algorithm", "implementation", "bits", "group_size", "symmetric", "calibration",
         "text_template", "samples", "seq_len", "rounding", "skip", "seed", "root")
QUICK = {"samples": 8, "seq_len": 64, "rounding": "nearest", "device": "cpu"}


def quantized(model: Path, root: Path, **changes) -> Path:
    """What `phicli quantize` makes of a model with little calibration."""
    settings = vars(Settings().resolve("quantize", dict.fromkeys(NAMES)))
    return quantize(**{**settings, "model": str(model), "root": root, **QUICK, **changes})[0]
