"""The GPU made ready for a quantization while Python imports: what the first layer would wait for otherwise.

That is CUDA's context, the Triton kernels, which are compiled for each machine, dtype and grid, and the libraries
behind torch's products and factorizations, which choose and load a kernel for each shape that they see first.
"""

from pathlib import Path
from typing import Any

from phicli.hardware.devices import open_gpu
from phicli.progress import SILENT
from phicli.steps.importing import Imports

ROWS, WIDTH = 64, 256  # of the weight that is tried; Triton compiles anew only where 16 does not divide them


def warm_up(device: str, folder: Path, config: dict[str, Any], settings: dict[str, Any], imports: Imports) -> None:
    """Round a small weight, then the model's first layer on any tokens; nothing where there is no CUDA.

    device: "auto", "cpu" or "cuda". config: of the model in `folder`. settings: of the stage.
    """
    if device == "cpu" or not open_gpu() or not imports.reached("torch"):
        return
    import torch

    from phicli.quantization.grid import GridShape

    if not torch.cuda.is_available() or imports.over.is_set():
        return
    shape = GridShape(4, settings["group_size"], settings["symmetric"])
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)
    with torch.no_grad():
        _compile_kernels(shape, dtype, settings["rounding"])
        if imports.reached("transformers.modeling_layers"):
            _rehearse(folder, shape, settings["rounding"], settings["seq_len"])
        torch.cuda.synchronize()


def _compile_kernels(shape: Any, dtype: Any, rounding: str) -> None:
    import torch

    from phicli.quantization.gram import GramSum
    from phicli.quantization.rounding import ROUNDINGS
    from phicli.quantization.search import search_clip, search_scale

    gram = torch.eye(WIDTH, device="cuda")
    weight = torch.linspace(-1, 1, ROWS * WIDTH, device="cuda").view(ROWS, WIDTH)  # no random number is taken
    half = weight.to(dtype)
    inputs = GramSum(WIDTH, ROWS, gram.device)
    inputs.add(half)
    search_scale(half, gram, inputs.means()[1], shape)
    scale, zero = search_clip(weight, gram, shape)
    ROUNDINGS[rounding](weight, gram, scale, zero, shape)


def _rehearse(folder: Path, shape: Any, rounding: str, seq_len: int) -> None:
    """Quantize the first layer, and forget it."""
    import torch

    from phicli.quantization.phases import Phases
    from phicli.quantization.quantize import BATCH_TOKENS, LayerJob, full_precision
    from phicli.quantization.streaming import LayeredModel

    model = LayeredModel(folder, torch.device("cuda"))
    rows = max(1, BATCH_TOKENS["cuda"] // seq_len)
    tokens = torch.arange(rows * seq_len).view(rows, seq_len) % model.config.get_text_config().vocab_size
    job = LayerJob(model, shape, rounding, (), Phases(model.device), False, SILENT)
    with full_precision():
        job.start(tokens)
        job.quantize(0, model.load_layer(0))
