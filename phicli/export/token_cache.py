"""The key/value cache in int8 with a scale for each token and head: attention of our own (attention_op.c).

Nothing has to be measured for it, and adapters that come later change nothing. A token's scale stands behind its
channels, so that to onnxruntime-genai, which reserves the cache, heads are some numbers larger than they are: two on a
CPU, and on CUDA, which reads words, four.
"""

import json
from pathlib import Path
from typing import Any

from phicli.artifacts.names import GENAI_CONFIG
from phicli.export.graph_file import read_model
from phicli.export.kv_cache import KEY, PAST, VALUE, attentions, replace_model
from phicli.export.portable_cache import function

DOMAIN = "phicli.cache"
ATTENTION = {"cpu": "Int8CacheAttention", "cuda": "Int8CacheAttentionCuda"}
BEHIND = {"cpu": 2, "cuda": 4}  # bytes of a token behind its numbers
INPUTS = 9  # of GroupQueryAttention, that ours has too, as it has these attributes
ATTRIBUTES = ("num_heads", "kv_num_heads", "scale", "softcap", "local_window_size", "do_rotary", "rotary_interleaved")
OTHER = ("smooth_softmax", "sliding_window_cache", "qk_output")  # that have to be 0
MULTIPLE, LARGEST = 16, 512  # of channels of a head, on a CPU
ON_CUDA = (64, 96, 128)


def device_of(graph: Any) -> str | None:
    """What a GraphProto's cache is for, if it is such a one: "cpu" or "cuda"."""
    found = {node.op_type for node in graph.node if node.domain == DOMAIN}
    return next((device for device, op in ATTENTION.items() if op in found), None)


def has_scales(graph: Any) -> bool:
    """Whether a GraphProto has such a cache."""
    return device_of(graph) is not None


def channels(size: int, graph: Any) -> int:
    """Channels of a head whose size in genai_config.json is `size`, in a GraphProto with such a cache or without."""
    device = device_of(graph)
    return size - BEHIND[device] if device else size


def takes_scales(path: Path, folder: Path, device: str) -> bool:
    """Whether all attention of an ONNX file, whose cache is in floats, can be ours.

    folder: its genai_config.json's. device: "cpu" or "cuda".
    """
    from onnx import TensorProto

    graph = read_model(path).graph
    size = _decoder(folder)[1]["head_size"]
    kind = TensorProto.FLOAT16 if device == "cuda" else TensorProto.FLOAT
    return ((device != "cuda" or size in ON_CUDA) and takes_size(size)
            and all(computes(node, graph, kind) for node in attentions(graph, path)))


def takes_size(size: int) -> bool:
    """Whether attention of ours on a CPU takes heads of this size."""
    return size % MULTIPLE == 0 and size <= LARGEST


def computes(node: Any, graph: Any, kind: int) -> bool:
    """Whether attention of ours computes what a GroupQueryAttention does. kind: of its cache, an element type."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    given = {a.name: a.i for a in node.attribute}
    return (types.get(node.input[PAST]) == kind and not any(node.input[INPUTS:])
            and len([name for name in node.output if name]) == 3 and given.get("causal", 1) == 1
            and not any(given.get(name) for name in OTHER))


def put_ours(node: Any, op: str, size: int) -> None:
    """Make attention of ours out of a GroupQueryAttention that it `computes`."""
    from onnx import helper

    node.op_type, node.domain = op, DOMAIN
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    given |= {"scale": given.get("scale") or size ** -0.5, "softcap": given.get("softcap", 0.0)}
    del node.attribute[:], node.input[INPUTS:]
    node.attribute.extend(helper.make_attribute(name, given[name]) for name in ATTRIBUTES if name in given)


def put_scales(path: Path, size: int, device: str) -> None:
    """Write an ONNX file anew, which `takes_scales`, with such a cache. size: channels of a head."""
    from onnx import TensorProto, helper

    model = read_model(path)
    values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    for node in attentions(model.graph, path):
        put_ours(node, ATTENTION[device], size)
        for name in (*node.output[KEY : VALUE + 1], *node.input[PAST : PAST + 2]):
            values[name].elem_type = TensorProto.INT8
            values[name].shape.dim[3].dim_value = size + BEHIND[device]
        if device == "cuda":
            node.output.extend(f"{node.output[0]}.{memory}" for memory in ("queries", "parts"))
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.functions.append(function(DOMAIN, ATTENTION[device], ATTRIBUTES, opset, size, BEHIND[device]))
    replace_model(path, model)


def put_all_scales(graphs: list[Path], folder: Path, device: str) -> None:
    """As `put_scales`, for the graphs of a folder, and its genai_config.json."""
    document, decoder = _decoder(folder)
    for path in graphs:
        put_scales(path, decoder["head_size"], device)
    decoder["head_size"] += BEHIND[device]
    fresh = folder / f".{GENAI_CONFIG}.part"  # the old one may be a link to one that is in use
    fresh.write_text(json.dumps(document, indent=4), encoding="utf-8")
    fresh.replace(folder / GENAI_CONFIG)


def _decoder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """genai_config.json as a document, and the part of it that says what the decoder is like."""
    document = json.loads((folder / GENAI_CONFIG).read_text(encoding="utf-8"))
    return document, document["model"]["decoder"]
