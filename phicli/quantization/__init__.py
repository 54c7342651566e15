"""AWQ: activation-aware weight quantization (Lin et al., 2023, arXiv:2306.00978), layer by layer.

gram -> grid -> search (scales, ranges) -> rounding -> packing are the mathematics, search_triton and rounding_triton
their inner loops on CUDA; scaling puts scales in where phicli.architectures says so; layer is what is done to one
layer, plan what was found for it; calibration, streaming and shards feed a model through; quantize is the whole,
olive_pass its Olive form, stage the step.
"""

from pathlib import Path

CALIBRATION = Path(__file__).with_name("calibration.txt")  # where the user gives none
CALIBRATE_ON = "--calibration FILE with plain text or rows; without it a built-in text is taken"
