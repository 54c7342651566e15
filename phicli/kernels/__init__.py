"""Ops of our own for onnxruntime: C, CUDA C, and building them on the machine that runs them."""
