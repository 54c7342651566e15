"""Estimates of the time that a step takes on a CPU: products of matrices, at the speed that this machine shows now.

They leave out what is small: runs of the built-in model and of one of 135 million parameters took 0.7 to 3 times as
long.
"""

import time

import numpy as np

from phicli.resources.estimates import RESPONSES, ROW_TOKENS
from phicli.resources.sizes import ModelSize

BEGIN = 5.0  # seconds until libraries are imported and files are opened
SIDE = 768  # of the matrices that are multiplied to measure
QUANTIZE_PASSES = 3  # of all calibration tokens through a layer, the search and the rounding counted as such
EVALUATED = 5  # stages: the original, quantized and ONNX, the last two with an adapter too
BUILT = 200e6  # bytes a second that optimize writes


def products_a_second() -> float:
    """Multiplications and additions of float32 numbers that this machine does a second, in products of matrices."""
    ones: np.ndarray = np.ones((SIDE, SIDE), np.float32)
    best = min(_timed(ones) for _ in range(4))
    return 2 * SIDE**3 / best


def _timed(matrix: np.ndarray) -> float:
    begun = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - begun


def seconds_on_cpu(step: str, size: ModelSize, rate: float, calibration_tokens: int, training_rows: int,
                   lora_r: int) -> float:
    """Seconds that a step of the lab takes, loading and starting counted."""
    trained = size.params + lora_r * size.edges
    work = {
        "quantize": QUANTIZE_PASSES * 2 * size.layer_params * calibration_tokens,
        "finetune": 6 * trained * training_rows * ROW_TOKENS / 2,  # that is what a batch's longest takes
        "evaluate": EVALUATED * 2 * size.params * RESPONSES,
    }
    return BEGIN + work.get(step, 0) / rate + (size.weight_bytes / BUILT if step == "optimize" else 0)
