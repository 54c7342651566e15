"""What a checkpoint's headers say about its linears, without loading it."""

from pathlib import Path

from phicli.architectures import in_layer
from phicli.artifacts.tensors import check_safetensors
from phicli.errors import BadInput
from phicli.hub.fitting import check_linears
from phicli.hub.models import check_model, weight_files


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linears of a checkpoint's layers, by "layers.N." and the path in the layer.

    Knows unquantized checkpoints, AWQ's and Olive's.

    Raises:
        BadInput: an incomplete or truncated checkpoint, or a quantization that cannot be built from.
    """
    config = check_model(folder)
    quantization = config.get("quantization_config") or {}
    method, bits = quantization.get("quant_method"), quantization.get("bits", 4)
    if method not in (None, "awq", "olive"):
        raise BadInput(f"quantization '{method}' cannot be built from", where=folder / "config.json",
                       hint="phicli quantize", also=["an unquantized model"])
    overrides = quantization.get("overrides") or {}
    shapes = {}
    for file in weight_files(folder):
        for name, entry in check_safetensors(file).items():
            module, _, kind = name.rpartition(".")
            found, shape = in_layer(module), entry["shape"]
            if not found or kind not in ("weight", "qweight") or len(shape) != 2:
                continue
            linear = f"layers.{found[0]}.{found[1]}"
            if kind == "weight":
                shapes[linear] = (shape[1], shape[0])
            elif method == "awq":
                shapes[linear] = (shape[0], shape[1] * 32 // bits)
            else:
                own = (overrides.get(module) or {}).get("bits", bits)
                shapes[linear] = (shape[1] * 8 // own, shape[0])
    check_linears(config, {name: (outputs, inputs) for name, (inputs, outputs) in shapes.items()}, folder)
    return shapes
