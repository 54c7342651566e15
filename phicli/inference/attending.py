"""Attention of our own over keys and values in floats, in a graph that is about to run.

The model's folder keeps onnxruntime's GroupQueryAttention, which runs elsewhere too. Ours is faster: on a CPU, where it
rounds the tokens of a run as it does one by one, most for several rows and for prompts; on CUDA for several rows.
"""

from typing import Any

from phicli.export.kv_cache import ATTENTION
from phicli.export.token_cache import DOMAIN, computes, put_ours, takes_size

OP = {"cpu": "FloatCacheAttention", "cuda": "FloatCacheAttentionCuda"}  # of attention_op.c


def attend(model: Any, size: int, device: str) -> bool:
    """Put it in the place of GroupQueryAttention in a ModelProto, if it computes all of them.

    Args:
        size: channels of a head. device: "cpu", with a cache in fp32, or "cuda", with one in fp16.

    Returns:
        whether it does.
    """
    from onnx import TensorProto, helper

    nodes = [node for node in model.graph.node if node.op_type == ATTENTION]
    kind = TensorProto.FLOAT16 if device == "cuda" else TensorProto.FLOAT
    if not nodes or not takes_size(size, device) or not all(computes(node, model.graph, kind) for node in nodes):
        return False
    for node in nodes:
        put_ours(node, OP[device], size, device)
    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return True
