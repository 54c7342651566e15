"""Measuring keys and values of a model that was just built, for the scales of a cache in int8."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from phicli.errors import BadInput
from phicli.export.genai_config import read_config
from phicli.export.kv_cache import Ranges
from phicli.export.slots import MODEL
from phicli.inference.genai_model import open_graph
from phicli.progress import Task
from phicli.quantization import CALIBRATION
from phicli.text import TextCodec

NAME = "measured"  # of the adapter, in genai
TEXTS, LONGEST = 6, 512  # texts to measure on, and their tokens
PARAGRAPHS = 5  # of a text; an odd number, as a conversation ends with a question


def calibration_texts(codec: TextCodec) -> list[list[int]]:
    """Token ids of the package's calibration text, plain and as conversations in the model's own layout by turns.

    Control tokens have keys and values that plain text has not. A model without a layout has plain text only.
    """
    paragraphs = [text.strip() for text in CALIBRATION.read_text(encoding="utf-8").split("\n\n") if text.strip()]
    found = []
    for number in range(TEXTS):
        texts = paragraphs[number::TEXTS][:PARAGRAPHS]
        ids = [*codec.tokens.begin, *codec.encode_text("\n\n".join(texts))]
        if number % 2:
            with contextlib.suppress(BadInput):
                ids = codec.encode_chat([{"role": ("user", "assistant")[i % 2], "content": text}
                                         for i, text in enumerate(texts)])
        found.append(ids[:LONGEST])
    return found


def measure_ranges(folder: Path, texts: Sequence[Sequence[int]], adapters: Sequence[Path | None], device: str,
                   known: Mapping[str, np.ndarray], task: Task) -> dict[str, np.ndarray]:
    """The largest keys and values of each channel, (heads, channels), by name of the graph's output.

    Args:
        folder: holds model.onnx, whose cache is not in int8, and genai_config.json. texts: token ids, each run on its
            own. adapters: files of the adapters to run them with; None: with none. device: "cpu" or "cuda".
        known: ranges that were measured before.

    Raises:
        BadInput: attention without a cache for int8. Missing: CUDA wanted and not there.
    """
    import onnxruntime_genai as og

    ranges = Ranges(folder / MODEL, known)
    model, _ = open_graph(read_config(folder), folder / MODEL, device)
    for file in adapters:
        loaded = og.Adapters(model)
        if file is not None:
            loaded.load(str(file), NAME)
        for ids in texts:
            params = og.GeneratorParams(model)
            params.set_search_options(max_length=len(ids) + 1, batch_size=1, num_beams=1)
            made = og.Generator(model, params)
            if file is not None:
                made.set_active_adapter(loaded, NAME)
            made.append_tokens(np.asarray(ids, dtype=np.int32))
            for name in ranges.outputs:
                ranges.add(name, np.asarray(made.get_output(name))[0, :, : len(ids)])
            task.advance(1)
    return ranges.largest
