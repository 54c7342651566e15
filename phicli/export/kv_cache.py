"""The key/value cache in int8: GroupQueryAttention of onnxruntime rounds what it appends, with a scale for a channel.

That is so on CUDA, and on a CPU where `token_cache` cannot be. The scales are constants of the graph, so they have to
hold wherever in a text a token stands. The rotary embedding turns two channels of a key into each other, the further
the later the token: of the slowest pairs a calibration of some hundred tokens sees one channel only. What stays the
same at every position is a pair's length, so that is measured.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phicli.errors import BadInput
from phicli.export.graph_file import read_model

ATTENTION = "GroupQueryAttention"
KEY, VALUE = 1, 2  # outputs; the cache before it comes in two inputs further on
PAST, TABLE, SCALES = 3, 7, 12  # inputs: keys then values, cosines, the scales of keys then values
LARGEST_INT = 127
SMALLEST = 1e-6  # a channel that was always 0 has a scale too
MARGIN = 1.05  # by which a key or value may be larger than all that were measured
ATTRIBUTES = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


class Ranges:
    """The largest keys and values of each channel, over any number of runs of a graph.

    outputs: names of the graph's outputs with keys and values, which `add` takes. largest: what `restore_cache` gave.

    Raises:
        BadInput: attention of another kind.
    """

    def __init__(self, path: Path, largest: Mapping[str, np.ndarray]):
        graph = read_model(path).graph
        self._rotated = {node.output[KEY]: _rotated(graph, node) for node in attentions(graph, path)}
        self.outputs = [node.output[i] for node in attentions(graph, path) for i in (KEY, VALUE)]
        self.largest = dict(largest)

    def add(self, output: str, numbers: np.ndarray) -> None:
        """numbers: float (heads, tokens, channels), keys after their rotation."""
        size = np.abs(numbers.astype(np.float32))
        half = self._rotated.get(output, 0) // 2
        if half:
            size[..., :half] = size[..., half : 2 * half] = np.hypot(size[..., :half], size[..., half : 2 * half])
        found = size.max(axis=1)
        self.largest[output] = np.maximum(found, self.largest.get(output, found))


def round_cache(path: Path, largest: Mapping[str, np.ndarray]) -> None:
    """Write an ONNX file anew with its cache in int8.

    largest: as `Ranges` finds it, (heads, channels) of each output with keys or values.

    Raises:
        BadInput: attention of another kind, or ranges that are not finite.
    """
    from onnx import TensorProto, helper, numpy_helper

    model = read_model(path)
    for node in attentions(model.graph, path):
        node.input.extend([""] * (SCALES + 2 - len(node.input)))
        for i in (KEY, VALUE):
            name = node.output[i]
            if not np.isfinite(largest[name]).all():
                raise BadInput(f"{name} is not finite on the calibration text", where=path)
            scale = np.maximum(largest[name] * (MARGIN / LARGEST_INT), SMALLEST).astype(np.float32)
            node.input[SCALES + i - KEY] = _scale(name)
            model.graph.initializer.append(numpy_helper.from_array(scale, _scale(name)))
        node.attribute.extend(helper.make_attribute(key, value) for key, value in ATTRIBUTES.items())
        _set_type(model.graph, node, TensorProto.INT8)
    replace_model(path, model)


def restore_cache(path: Path) -> dict[str, np.ndarray]:
    """Write an ONNX file anew as it was before `round_cache`, and give the ranges that its scales came from.

    Where it is not in int8 nothing happens, and there are none.
    """
    from onnx import numpy_helper

    model, largest = read_model(path), {}
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    for node in attentions(model.graph, path):
        for i in (KEY, VALUE):
            if (tensor := scales.get(_scale(node.output[i]))) is not None:
                largest[node.output[i]] = numpy_helper.to_array(tensor) * (LARGEST_INT / MARGIN)
                node.input[SCALES + i - KEY] = ""
                model.graph.initializer.remove(tensor)
        if largest:
            kept = [attribute for attribute in node.attribute if attribute.name not in ATTRIBUTES]
            del node.attribute[:]
            node.attribute.extend(kept)
            _set_type(model.graph, node, types[node.output[0]])
    if largest:
        replace_model(path, model)
    return largest


def _scale(output: str) -> str:
    return f"{output}.scale"


def _set_type(graph: Any, node: Any, elem_type: int) -> None:
    names = (*node.output[KEY : VALUE + 1], *node.input[PAST : PAST + 2])
    for value in (*graph.input, *graph.output):
        if value.name in names:
            value.type.tensor_type.elem_type = elem_type


def replace_model(path: Path, model: Any) -> None:
    """Write a new file in the old one's place, which may be a link to one that is in use."""
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(model.SerializeToString())
    fresh.replace(path)


def attentions(graph: Any, path: Path) -> Iterator[Any]:
    """The nodes that hold the cache."""
    nodes = [node for node in graph.node if len(node.output) > VALUE and node.output[KEY].startswith("present")]
    strange = next((node.op_type for node in nodes if node.op_type != ATTENTION), None)
    if strange or not nodes:
        raise BadInput(f"{strange or 'this kind of attention'} has no cache in int8", where=path,
                       hint="phicli optimize --kv-cache float")
    return iter(nodes)


def _rotated(graph: Any, node: Any) -> int:
    """Channels of a head that an attention's rotary embedding turns: twice the columns of its table."""
    name = node.input[TABLE] if len(node.input) > TABLE else ""
    sizes = {tensor.name: tensor.dims[-1] for tensor in graph.initializer if tensor.dims}
    for chosen in (n for n in graph.node if n.op_type == "If" and name in n.output):  # LongRoPE has two tables
        branch = chosen.attribute[0].g
        place = branch.output[list(chosen.output).index(name)].name
        sizes[name] = next(n.attribute[0].t.dims[-1] for n in branch.node if place in n.output)
    return 2 * sizes.get(name, 0)
