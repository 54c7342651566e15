"""ONNX models for onnxruntime-genai: building from a checkpoint, LoRA slots in the graph, adapter files."""
