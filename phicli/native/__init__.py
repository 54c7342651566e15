"""Ops of our own for onnxruntime, in C and CUDA C, and the library that is built of them on the machine."""
