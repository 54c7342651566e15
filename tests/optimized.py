"""A small optimized model with two adapters, for tests of what runs one. Random adapters: they have to differ."""

import subprocess
import sys
from pathlib import Path

import numpy as np

ADAPTERS = {"cooking": 4, "travel": 8}  # name -> rank


def build(model: Path, folder: Path, cache: Path) -> None:
    """genai's own builder in float32, then our slots.

    Not int4: its kernels round activations to 8 bits, and where one value falls on the other side of a step the
    logits jump by several hundredths, which would hide what tests of a cache look for.
    """
    from phicli.export import graph_inputs

    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", model, "-o", folder, "-p", "fp32",
               "-e", "cpu", "-c", cache]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    slots = graph_inputs.add_slots(folder / "model.onnx")
    (folder / "adapters").mkdir()
    for name, rank in ADAPTERS.items():
        rng = np.random.default_rng(rank)
        tensors: dict[str, np.ndarray] = {}
        for slot in slots:
            a, b = rng.standard_normal((slot.inputs, rank)), rng.standard_normal((rank, slot.outputs))
            tensors |= graph_inputs.tensors(slot, 0.1 * a, 0.1 * b)
        write_adapter(folder / "adapters" / f"{name}.onnx_adapter", tensors)


def write_adapter(path: Path, tensors: dict[str, np.ndarray]) -> None:
    import onnxruntime as ort

    file = ort.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()})
    file.export_adapter(str(path))
