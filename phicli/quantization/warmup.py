"""A GPU made ready for a quantization while Python imports: its context, Triton's kernels, the libraries of torch.

Triton compiles each kernel for a machine, a dtype and a grid; cuBLAS and cuSOLVER choose one for the shapes that they
see first. Else the first layer waits for all of that: 3.6 of 11.9 s of a model of 3.8 B (docs/performance.md).
"""

from typing import Any

from phicli.hardware.driver import open_gpu

ROWS, WIDTH = 64, 256  # of the weight that is tried; Triton compiles anew only where 16 does not divide them


def warm_up(device: str, dtype: str, group_size: int, symmetric: bool, rounding: str) -> None:
    """Search scales and ranges of a small weight and round it; nothing where there is no CUDA.

    Args:
        device: "auto", "cpu" or "cuda". dtype: of the model's weights, by torch's name.
    """
    if device == "cpu" or not open_gpu():
        return
    import torch

    if not torch.cuda.is_available():
        return
    from phicli.quantization.gram import GramSum
    from phicli.quantization.grid import GridShape
    from phicli.quantization.rounding import ROUNDINGS
    from phicli.quantization.search import search_clip, search_scale

    shape: Any = GridShape(4, group_size, symmetric)
    with torch.no_grad():
        gram = torch.eye(WIDTH, device="cuda")
        weight = torch.linspace(-1, 1, ROWS * WIDTH, device="cuda").view(ROWS, WIDTH)  # no random number is taken
        half = weight.to(getattr(torch, dtype, torch.bfloat16))
        inputs = GramSum(WIDTH, ROWS, gram.device)
        inputs.add(half)
        search_scale(half, gram, inputs.means()[1], shape)
        scale, zero = search_clip(weight, gram, shape)
        ROUNDINGS[rounding](weight, gram, scale, zero, shape)
        torch.cuda.synchronize()
