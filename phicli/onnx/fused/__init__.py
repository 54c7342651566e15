"""LoRA as two ops of our own in an ONNX graph: their kernels, and the library that brings them into onnxruntime."""
