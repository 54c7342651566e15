"""AWQ: activation-aware weight quantization (Lin et al., 2023, arXiv:2306.00978), layer by layer.

grid -> search (scales, ranges) -> rounding -> packing are the mathematics; architectures says which weights may
share a scale; calibration and streaming feed a model through; quantize is the whole, olive_pass its Olive form.
"""
