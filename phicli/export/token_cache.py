"""The key/value cache in int8 with a scale for each token and head: attention of our own, for a CPU (attention_op.c).

Nothing has to be measured for it, and adapters that come later change nothing. A token's scale stands behind its
channels, so that to onnxruntime-genai, which reserves the cache, heads are two numbers larger than they are.
"""

import json
from pathlib import Path
from typing import Any

from phicli.artifacts.names import GENAI_CONFIG
from phicli.export.graph_file import read_model
from phicli.export.kv_cache import KEY, PAST, VALUE, attentions, replace_model
from phicli.export.portable_cache import function

DOMAIN, ATTENTION = "phicli.cache", "Int8CacheAttention"
SCALE = 2  # bytes of a token's scale, in bfloat16
INPUTS = 9  # of GroupQueryAttention, that ours has too, as it has these attributes
ATTRIBUTES = ("num_heads", "kv_num_heads", "scale", "softcap", "local_window_size", "do_rotary", "rotary_interleaved")
OTHER = ("smooth_softmax", "sliding_window_cache", "qk_output")  # that have to be 0
MULTIPLE, LARGEST = 16, 512  # of channels of a head


def channels(size: int) -> int:
    """Channels of a head whose size in genai_config.json is `size`, with such a cache or without."""
    return size - SCALE if size > MULTIPLE and size % MULTIPLE == SCALE else size


def has_scales(graph: Any) -> bool:
    """Whether a GraphProto has such a cache."""
    return any(node.domain == DOMAIN for node in graph.node)


def takes_scales(path: Path, folder: Path) -> bool:
    """Whether all attention of an ONNX file, whose cache is in fp32, can be ours. folder: its genai_config.json's."""
    from onnx import TensorProto

    graph = read_model(path).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    size = _decoder(folder)[1]["head_size"]

    def taken(node: Any) -> bool:
        given = {a.name: a.i for a in node.attribute}
        return (types[node.input[PAST]] == TensorProto.FLOAT and not any(node.input[INPUTS:])
                and len([name for name in node.output if name]) == 3 and given.get("causal", 1) == 1
                and not any(given.get(name) for name in OTHER))

    return size % MULTIPLE == 0 and size <= LARGEST and all(map(taken, attentions(graph, path)))


def put_scales(path: Path, size: int) -> None:
    """Write an ONNX file anew, which `takes_scales`, with such a cache. size: channels of a head."""
    from onnx import TensorProto, helper

    model = read_model(path)
    values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    for node in attentions(model.graph, path):
        node.op_type, node.domain = ATTENTION, DOMAIN
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        given |= {"scale": given.get("scale") or size ** -0.5, "softcap": given.get("softcap", 0.0)}
        del node.attribute[:], node.input[INPUTS:]
        node.attribute.extend(helper.make_attribute(name, given[name]) for name in ATTRIBUTES if name in given)
        for name in (*node.output[KEY : VALUE + 1], *node.input[PAST : PAST + 2]):
            values[name].elem_type = TensorProto.INT8
            values[name].shape.dim[3].dim_value = size + SCALE
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.functions.append(function(DOMAIN, ATTENTION, ATTRIBUTES, opset, size))
    replace_model(path, model)


def put_all_scales(graphs: list[Path], folder: Path) -> None:
    """As `put_scales`, for the graphs of a folder, and its genai_config.json."""
    document, decoder = _decoder(folder)
    for path in graphs:
        put_scales(path, decoder["head_size"])
    decoder["head_size"] += SCALE
    fresh = folder / f".{GENAI_CONFIG}.part"  # the old one may be a link to one that is in use
    fresh.write_text(json.dumps(document, indent=4), encoding="utf-8")
    fresh.replace(folder / GENAI_CONFIG)


def _decoder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """genai_config.json as a document, and the part of it that says what the decoder is like."""
    document = json.loads((folder / GENAI_CONFIG).read_text(encoding="utf-8"))
    return document, document["model"]["decoder"]
