"""A GPU made ready for a quantization while Python imports: what the first layer would wait for otherwise.

That is CUDA's context, Triton's kernels, which are compiled for each machine, dtype and grid, and the libraries behind
torch's products and factorizations, which choose and load a kernel for each shape that they see first. The kernels
alone are worth 3 s of the work and 7 s of the process at 3.8 B on an H100 (docs/performance.md).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from phicli.config.steps import QuantizeConfig
from phicli.hardware.driver import open_gpu
from phicli.hub.models import read_config
from phicli.progress import SILENT

ROWS, WIDTH = 64, 256  # of the weight that is tried; Triton compiles anew only where 16 does not divide them


def warm_up(config: QuantizeConfig, folder: Path, reached: Callable[[str], bool]) -> None:
    """Round a small weight, then quantize the model's first layer on any tokens, and forget both; nothing without CUDA.

    Args:
        folder: of the model. reached: waits until somebody else has imported a module; False ends this.
    """
    if config.device == "cpu" or not open_gpu() or not reached("torch"):
        return
    import torch

    from phicli.quantization.grid import GridShape

    if not torch.cuda.is_available():
        return
    shape, model = GridShape(4, config.group_size or GridShape.group_size, config.symmetric), read_config(folder)
    dtype = getattr(torch, str(model.get("dtype") or model.get("torch_dtype")), torch.bfloat16)
    with torch.no_grad():
        _compile_kernels(shape, dtype, config.rounding)
        if reached("transformers.modeling_layers"):
            _rehearse(folder, shape, config)
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


def _rehearse(folder: Path, shape: Any, config: QuantizeConfig) -> None:
    """Quantize the first layer, and forget it."""
    import torch

    from phicli.quantization.phases import Phases
    from phicli.quantization.quantize import LayerJob, full_precision
    from phicli.quantization.streaming import LayeredModel
    from phicli.resources.estimates import BATCH_TOKENS

    model = LayeredModel(folder, torch.device("cuda"))
    rows = max(1, BATCH_TOKENS["cuda"] // config.seq_len)
    tokens = torch.arange(rows * config.seq_len).view(rows, config.seq_len) % model.config.get_text_config().vocab_size
    job = LayerJob(model, shape, config.rounding, (), Phases(model.device), False, SILENT)
    with full_precision():
        job.start(tokens)
        job.quantize(0, model.load_layer(0))
