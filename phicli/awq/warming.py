"""The GPU made ready for a quantization while Python imports: what the first layer would wait for otherwise.

That is CUDA's context, the libraries behind torch's products and factorizations, and the Triton kernels, which are
compiled for each machine, dtype and grid.
"""

from threading import Event
from typing import Any

from phicli.devices import open_gpu

ROWS, WIDTH = 64, 256  # of the weight that is tried; Triton compiles anew only where 16 does not divide them


def warm_up(device: str, config: dict[str, Any], group_size: int, symmetric: bool, rounding: str, ended: Event) -> None:
    """Round a small weight, in the dtype that the model's config.json names; nothing where there is no CUDA.

    device: "auto", "cpu" or "cuda". ended: set when nobody needs it any longer.
    """
    if device == "cpu" or not open_gpu() or ended.is_set():
        return
    import torch

    from phicli.awq.gram import GramSum
    from phicli.awq.grid import GridShape
    from phicli.awq.rounding import ROUNDINGS
    from phicli.awq.search import search_clip, search_scale

    if not torch.cuda.is_available() or ended.is_set():
        return
    shape = GridShape(4, group_size, symmetric)
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)
    with torch.no_grad():
        gram = torch.eye(WIDTH, device="cuda")
        weight = torch.linspace(-1, 1, ROWS * WIDTH, device="cuda").view(ROWS, WIDTH)  # no random number is taken
        half = weight.to(dtype)
        inputs = GramSum(WIDTH, ROWS, gram.device)
        inputs.add(half)
        search_scale(half, gram, inputs.means()[1], shape)
        if ended.is_set():
            return
        scale, zero = search_clip(weight, gram, shape)
        if ended.is_set():
            return
        ROUNDINGS[rounding](weight, gram, scale, zero, shape)
        torch.cuda.synchronize()
