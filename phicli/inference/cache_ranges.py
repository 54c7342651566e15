"""Measuring keys and values of a model that was just built, for the scales of a cache in int8."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from phicli.export.genai_config import read_config
from phicli.export.kv_cache import Ranges
from phicli.export.slots import MODEL
from phicli.inference.genai_model import open_graph
from phicli.progress import Task


def measure_ranges(folder: Path, texts: Iterable[Sequence[int]], device: str, task: Task) -> dict[str, np.ndarray]:
    """The largest keys and values of each channel, (heads, channels), by name of the graph's output.

    Args:
        folder: holds model.onnx and genai_config.json. texts: token ids, each text run on its own.
        device: "cpu" or "cuda".

    Raises:
        BadInput: attention without a cache for int8. Missing: CUDA wanted and not there.
    """
    import onnxruntime_genai as og

    ranges = Ranges(folder / MODEL)
    model, _ = open_graph(read_config(folder), folder / MODEL, device)
    for ids in texts:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + 1, batch_size=1, num_beams=1)
        made = og.Generator(model, params)
        made.append_tokens(np.asarray(ids, dtype=np.int32))
        for name in ranges.outputs:
            ranges.add(name, np.asarray(made.get_output(name))[0, :, : len(ids)])
        task.advance(1)
    return ranges.largest
