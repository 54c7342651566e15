"""The graph that a batch runs: a model's own, with lengths of rows as inputs, and logits of one token of each row.

The builder's graph counts ones in a mask to know how long rows are, and gives logits of all tokens of a prompt. Here
the lengths come as they are, and only tokens that an answer may go on from are multiplied with the vocabulary.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from phicli.export import kv_cache, token_cache
from phicli.export.fused import ID
from phicli.export.slots import LAYOUT_KEY
from phicli.inference.long_rope import COMPARISONS

LENGTHS = "phicli.lengths"  # int32 (rows,): of each row, tokens that are there before this run's last one
LONGEST = "phicli.longest"  # int32 (): the longest row with this run's tokens
LAST = "phicli.last"  # int64 (wanted,): numbers of the tokens whose logits are wanted
BEST = "phicli.best"  # int64 (rows, wanted): the likeliest tokens
ATTENTIONS = (kv_cache.ATTENTION, *token_cache.ATTENTION.values())
PAST, PRESENT = (3, 4), (1, 2)  # inputs and outputs of keys and values
OF_LENGTHS = (5, 6)


@dataclass(frozen=True)
class CacheInput:
    """Keys or values of a layer: the graph's names for them, and what a row has for each token."""

    past: str
    present: str
    heads: int
    size: int
    elem_type: int


def unfit(graph: Any, properties: Mapping[str, str], settings: Mapping[str, Any]) -> str | None:
    """Why a batch cannot run a GraphProto, in words; None where it can.

    properties: of its metadata. settings: as `read_config` gives them.
    """
    layout = properties.get(LAYOUT_KEY)
    if layout not in (None, "fused"):
        return f"its adapters are in layout '{layout}', which gives all rows the same one"
    if settings["model"]["decoder"].get("sliding_window"):
        return "its keys and values slide"
    nodes = [node for node in graph.node if "Attention" in node.op_type]
    if not nodes or any(node.op_type not in ATTENTIONS or len(node.input) < 7 for node in nodes):
        return "its attention keeps no keys and values that rows could share a run with"
    if any(a.name in ("k_quant_type", "v_quant_type") and a.s not in (b"", b"NONE")
           for node in nodes for a in node.attribute):
        return "its keys and values are in int8 with scales of channels"
    if len(caches(graph, 0)) != 2 * len(nodes):
        return "it keeps more of a row than keys and values"
    return None


def caches(graph: Any, size: int) -> list[CacheInput]:
    """Keys and values of all layers of a GraphProto, in its order. size: of a head, where the graph leaves it open."""
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    found = []
    for node in graph.node:
        if node.op_type not in ATTENTIONS:
            continue
        for at, out in zip(PAST, PRESENT, strict=True):
            kind = inputs[node.input[at]]
            dims = [dim.dim_value for dim in kind.shape.dim]
            found.append(CacheInput(node.input[at], node.output[out], dims[1], dims[3] or size, kind.elem_type))
    return found


def serve(graph: Any, best: bool, more: Collection[str]) -> None:
    """Change a GraphProto that is not `unfit` as this file says; raises ValueError where it has other parts.

    best: with the likeliest tokens as another output, for logits that stay on a GPU. more: inputs that it may have.
    """
    from onnx import TensorProto, helper

    _without_long_factors(graph)
    for node in graph.node:
        if node.op_type in ATTENTIONS:
            node.input[OF_LENGTHS[0]], node.input[OF_LENGTHS[1]] = LENGTHS, LONGEST
    logits = graph.output[0].name
    head = next(node for node in graph.node if logits in node.output)
    while head.op_type not in ("MatMul", "MatMulNBits"):  # a softcap, a cast
        head = next(node for node in graph.node if head.input[0] in node.output)
    gather = helper.make_node("Gather", [head.input[0], LAST], ["phicli.last_hidden"], "/phicli/last", axis=1)
    head.input[0] = gather.output[0]
    graph.node.insert(next(i for i, node in enumerate(graph.node) if node.name == head.name), gather)
    if best:
        graph.node.append(helper.make_node("ArgMax", [logits], [BEST], "/phicli/best", axis=2, keepdims=0))
        graph.output.append(helper.make_tensor_value_info(BEST, TensorProto.INT64, ["batch_size", "wanted"]))
    for name, kind, dims in ((LENGTHS, TensorProto.INT32, ["batch_size"]), (LONGEST, TensorProto.INT32, []),
                             (LAST, TensorProto.INT64, ["wanted"])):
        graph.input.append(helper.make_tensor_value_info(name, kind, dims))
    for tensor in [tensor for tensor in graph.initializer if tensor.name == ID]:
        graph.initializer.remove(tensor)  # which made that input one that need not be given
    _without_unused(graph)
    known = {LENGTHS, LONGEST, LAST, ID, graph.input[0].name, *more, *(cache.past for cache in caches(graph, 0))}
    strange = [value.name for value in graph.input if value.name not in known]
    if strange:
        raise ValueError(f"it has the input {strange[0]}")


def _without_long_factors(graph: Any) -> None:
    """Take LongRoPE's short factors, whatever the length of the rows."""
    from onnx import TensorProto, helper

    for node in [node for node in graph.node if node.name in COMPARISONS]:
        graph.initializer.append(helper.make_tensor(node.output[0], TensorProto.BOOL, [], [False]))
        graph.node.remove(node)


def _without_unused(graph: Any) -> None:
    """Take out nodes and inputs that nothing reads."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input, *(inner.input for a in node.attribute for inner in a.g.node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    inputs = [value for value in graph.input if value.name in wanted]
    del graph.input[:]
    graph.input.extend(inputs)
