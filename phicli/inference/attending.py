"""Attention of our own over keys and values in fp32, in a graph that is about to run on a CPU.

The model's folder keeps onnxruntime's GroupQueryAttention, which runs elsewhere too. Ours is faster, most for
several rows and for prompts, and rounds the tokens of a run as it does one by one.
"""

from typing import Any

from phicli.export.kv_cache import ATTENTION
from phicli.export.token_cache import DOMAIN, computes, put_ours, takes_size

OP = "FloatCacheAttention"  # of attention_op.c


def attend(model: Any, size: int) -> bool:
    """Put it in the place of GroupQueryAttention in a ModelProto, if it computes all of them. size: channels of a head.

    Returns:
        whether it does.
    """
    from onnx import TensorProto, helper

    nodes = [node for node in model.graph.node if node.op_type == ATTENTION]
    if not nodes or not takes_size(size) or not all(computes(node, model.graph, TensorProto.FLOAT) for node in nodes):
        return False
    for node in nodes:
        put_ours(node, OP, size)
    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return True
