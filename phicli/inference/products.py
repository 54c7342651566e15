"""Products of quantized weights that take many rows at once on a GPU: an op of ours in MatMulNBits' place."""

from pathlib import Path
from typing import Any

from phicli.hardware.driver import compute_capability
from phicli.kernels.build import missing, ops_library

DOMAIN, OP = "phicli.products", "MatMulNBitsRows"
BITS, BLOCKS = (4, 8), (32, 64, 128)
MEASURED = (9, 0)  # the compute capability of the GPUs on which it was found to be faster, see docs/performance.md


def rows_library(model: Any, provider: str, kernels: str) -> Path | None:
    """The library with that op, for a ModelProto that has then been given it; None where onnxruntime's products run.

    kernels: "phicli" takes it, where a GPU and a compiler are there; "auto" only on GPUs like those it was measured on.

    Raises:
        Missing: as `ops_library`.
    """
    if provider != "cuda" or kernels == "onnxruntime" or missing("cuda"):
        return None
    if (kernels == "auto" and compute_capability() != MEASURED) or not take_rows(model):
        return None
    return ops_library("cuda", matmul=True)


def take_rows(model: Any) -> int:
    """Put it in the place of each MatMulNBits that it can compute; returns how many."""
    from onnx import helper

    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    shapes = {value.name: value for value in model.graph.value_info}
    said = {*shapes, *(value.name for value in model.graph.output)}
    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits" and _fits(node, types)]
    for node in nodes:
        node.op_type, node.domain = OP, DOMAIN
        for attribute in [a for a in node.attribute if a.name not in ("N", "K", "bits", "block_size")]:
            node.attribute.remove(attribute)
        del node.input[4:]
        if node.input[0] in shapes and node.output[0] not in said:
            _say_shape(model.graph, node, shapes[node.input[0]])
        node.output.extend(f"{node.output[0]}.{memory}" for memory in ("sums", "wide"))
    if nodes:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(nodes)


def _say_shape(graph: Any, node: Any, x: Any) -> None:
    """For LoraUp, which may only write over what has a shape: onnxruntime infers none of an op of others."""
    value = graph.value_info.add()
    value.CopyFrom(x)
    value.name = node.output[0]
    value.type.tensor_type.shape.dim[-1].dim_value = next(a.i for a in node.attribute if a.name == "N")


def _fits(node: Any, types: dict[str, int]) -> bool:
    from onnx import TensorProto

    sizes = {a.name: a.i for a in node.attribute}
    inputs, bits, block = sizes.get("K", 0), sizes.get("bits", 4), sizes.get("block_size", 0)
    zeros = node.input[3] if len(node.input) > 3 else ""
    return (bits in BITS and "bits" in sizes and block in BLOCKS and inputs > 0 and inputs % block == 0
            and sizes.get("N", 1) % 8 == 0 and not any(node.input[4:]) and len(node.output) == 1
            and types.get(node.input[2]) == TensorProto.FLOAT16
            and (not zeros or types.get(zeros) == TensorProto.UINT8))
