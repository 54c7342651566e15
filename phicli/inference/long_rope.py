"""LongRoPE: rotary factors that change for the whole of a text once it is longer than a border.

Keys cached below the border are wrong above it. genai's graphs look at the tokens so far, so that the first part of a
long prompt would get the short factors, and genai 0.18, which knows the border of some types of models by heart, runs
all tokens again at once where an answer crosses it, with logits of each. Here the border becomes an input of the graph:
0 gives a text the long factors from its first token on, in parts of any size.
"""

from pathlib import Path
from typing import Any

import numpy as np

from phicli.export.adapters import write_tensors

BORDER = "phicli.rope_border"  # int64 (1,)
COMPARISONS = ("/model/rope_caches_subgraph/Greater", "/model/pos_ids_reformat/GreaterOrEqual")  # of genai's builder
RECOMPUTED = ("phi3", "phimoe", "phi3small")  # types of genai that it runs again, with LongRoPE or without
LONG_FACTORS = "long/factors"  # as no adapter can be called, since those are files
PLAIN = "phi"  # a type that it leaves alone


def open_border(model: Any, settings: dict[str, Any]) -> None:
    """Make the border of a ModelProto with LongRoPE an input that may be left out, and crossing it the caller's.

    settings: as `read_config` gives them; changed where genai would cross the border itself.
    """
    from onnx import helper

    if settings["model"]["type"] in RECOMPUTED:
        settings["model"]["type"] = PLAIN
    found = _compared(model.graph)
    if found is None:
        return
    node, border = found
    own = model.graph.initializer.add()
    own.CopyFrom(border)
    own.name = node.input[1] = BORDER
    own.dims[:] = [1]  # files of adapters take no scalars
    model.graph.input.append(helper.make_tensor_value_info(BORDER, border.data_type, own.dims))


def border_of(model: Any) -> int | None:
    """Tokens from which on a ModelProto takes the long factors; None without LongRoPE."""
    from onnx import numpy_helper

    found = _compared(model.graph)
    return None if found is None else int(numpy_helper.to_array(found[1]).item())


def load_long_factors(adapters: Any, scratch: Path) -> None:
    """Make LONG_FACTORS one of an og.Adapters, which is how genai hands a graph inputs that may be left out.

    scratch: a folder for the file that genai wants.
    """
    file = scratch / "long"
    write_tensors(file, {BORDER: np.zeros(1, np.int64)})
    adapters.load(str(file), LONG_FACTORS)


def _compared(graph: Any) -> tuple[Any, Any] | None:
    """The node that compares tokens so far with the border, and the border's constant, a number within the graph."""
    from onnx import TensorProto

    constants = {name: attribute.t for node in graph.node if node.op_type == "Constant"
                 for name in node.output for attribute in node.attribute if attribute.name == "value"}
    for node in graph.node:
        if node.name in COMPARISONS and len(node.input) == 2:
            border = constants.get(node.input[1])
            if border is None or border.data_type != TensorProto.INT64 or len(border.raw_data) != 8:
                continue
            if border.data_location == TensorProto.DEFAULT:
                return node, border
    return None
