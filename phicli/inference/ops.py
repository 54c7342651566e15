"""Which ops of ours a model runs with."""

from pathlib import Path
from typing import Any, NamedTuple

from phicli.errors import BadInput, Missing
from phicli.export import fused, token_cache
from phicli.kernels.build import matmul_measured, matmul_missing, ops_library

BLOCKS = {4: (32, 64, 128), 8: (16, 32, 64, 128)}  # bits of a weight -> sizes of blocks that nbits_op.c knows


class Ops(NamedTuple):
    """library: of the ops of ours that a graph needs or can use; None where it runs with onnxruntime's. joins: whether
    it has those that `join` puts into a graph, and the graph has places for them. products: whether a CPU computes all
    products of quantized weights with ours, where a row is the same whatever rows are beside it.
    """

    library: Path | None
    joins: bool = False
    products: bool = False


def ops_of(model: Any, settings: dict[str, Any], provider: str, kernels: str = "auto") -> Ops:
    """Which ops of ours a graph runs with.

    Code that lies in a model's folder is never loaded. Where the library cannot be built, onnxruntime's ops run: a
    graph of ours brings functions for it (`portable`, `portable_cache`); of those no CUDA graph is captured, as the
    adapters' mask comes from the CPU.

    Args:
        model: ModelProto. settings: as `read_config` gives them; changed where a CUDA graph has to be given up.
        provider: "cpu" or "cuda".
        kernels: whose matmul of 4- and 8-bit weights runs on a CPU, "onnxruntime", or "phicli": ours, where it can;
            "auto": ours where it was measured to be the faster one.

    Raises:
        Missing: the graph has ops of ours and no functions for them, and the library cannot be built.
        BadInput: a cache for another device.
    """
    ours = {node.domain for node in model.graph.node} & {fused.DOMAIN, token_cache.DOMAIN}
    made_for = token_cache.device_of(model.graph)
    if made_for and provider != made_for:
        raise BadInput(f"its key/value cache in int8 is for {made_for}",
                       hint=f"phicli optimize --device {provider} --force")
    wanted = kernels == "phicli" or (kernels == "auto" and matmul_measured())
    matmul = provider == "cpu" and wanted and not matmul_missing() and matmul_fits(model.graph)
    if not ours and not matmul:
        return Ops(None)
    try:
        return Ops(ops_library(provider, matmul), fused.DOMAIN in ours and matmul, matmul)
    except Missing:
        if ours - {function.domain for function in model.functions}:
            raise
        if ours and provider == "cuda":
            settings["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {"enable_cuda_graph": "0"}}]
        return Ops(None)


def matmul_fits(graph: Any) -> bool:
    """Whether our MatMulNBits computes all of a GraphProto's, and there are any.

    Ours rounds activations to int8; where a graph asks for more (an accuracy level below 4), it is not for it.
    """
    import onnx

    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]

    def taken(node: Any) -> bool:
        sizes = {a.name: a.i for a in node.attribute}
        block, inputs, more = sizes.get("block_size", 0), sizes.get("K", 1), node.input[3:]
        return (block in BLOCKS.get(sizes.get("bits", 4), ()) and inputs % block == 0 and len(node.input) > 2
                and sizes.get("accuracy_level", 0) == 4 and types.get(node.input[2]) == onnx.TensorProto.FLOAT
                and not (len(more) > 1 and more[1])
                and (not more or not more[0] or types.get(more[0]) == onnx.TensorProto.UINT8))

    return bool(nodes) and all(map(taken, nodes))
