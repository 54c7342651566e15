"""Calibration text that the model writes itself, sampled from the probabilities that it gives.

What a model wrote looks like what it will read in use, its own answers, in all registers that it knows; the text in the
package is short and one person's (LLM-QAT, Liu et al., 2023, arXiv:2305.17888). A chat model is given the beginning of
a conversation up to the user's first word, so it writes the question too (Magpie, Xu et al., 2024, arXiv:2406.08464).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phicli.errors import BadInput
from phicli.hardware.devices import available_memory
from phicli.progress import SILENT, Progress
from phicli.quantization.decoding import step_of
from phicli.resources import size_of_folder
from phicli.resources.estimates import GENERATED
from phicli.text import TextCodec
from phicli.text.layout import USER
from phicli.workflow.wording import worded

CACHE_SHARE = 0.5  # of the memory that is free once the model is loaded
MARK = "phicli"  # stands where a user's first word would


def generated_count(wanted: int | None, device: str) -> int:
    """The number of sequences that a setting stands for."""
    return GENERATED[device] if wanted is None else wanted


@torch.no_grad()
def generated_tokens(folder: Path, count: int, length: int, device: str, seed: int = 0,
                     progress: Progress = SILENT) -> Tensor:
    """Sequences that the model wrote, int64 (count, length), or none, (0, length), where it does not fit the GPU whole.

    The same on one machine and seed. Nothing ends a sequence: after the end of a conversation the model writes on.

    Raises:
        BadInput: transformers cannot load or run the model, or it gives no probabilities (NaN).
    """
    from phicli.checkpoints.loading import load_base

    empty = torch.empty(0, length, dtype=torch.long)
    if not count:
        return empty
    size, free = size_of_folder(folder).params * _dtype(device).itemsize, available_memory(device)
    if size > CACHE_SHARE * free:
        progress.note(f"the model writes no calibration text of its own: loaded whole it takes {size / 1e9:.1f} GB, of "
                      f"{free / 1e9:.1f} that are free")
        return empty
    model = load_base(folder, device, _dtype(device))
    start = opening(TextCodec(folder))[:length]
    rows = max(1, int(CACHE_SHARE * available_memory(device) / (cache_bytes(model.config, device) * length)))
    generator = torch.Generator(device).manual_seed(seed)
    written = []
    with progress.task("write calibration text", total=count * (length - len(start)), unit="tokens") as task:
        for first in range(0, count, rows):
            batch = torch.tensor([start] * min(rows, count - first), device=device)
            with worded("transformers cannot run this model", folder):
                written.append(_continued(model, batch, length, generator, task))
    return torch.cat(written)


def opening(codec: TextCodec) -> list[int]:
    """How a conversation begins up to the user's first word, or a text where the model has no chat template."""
    begin = codec.tokens.begin or codec.end_of_text or [0]
    try:
        before, mark, _ = codec.render_chat([{"role": USER, "content": MARK}]).partition(MARK)
    except BadInput:
        return begin
    if not mark:
        return begin
    ids: list[int] = codec.tokenizer.encode(before, add_special_tokens=False).ids
    return ids or begin


def _dtype(device: str) -> torch.dtype:
    """bfloat16 has the range for models that float16 has not."""
    if device != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def cache_bytes(config: Any, device: str) -> int:
    """Bytes of a token's keys and values in all layers."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * 2 * heads * size * _dtype(device).itemsize)


def _continued(model: Any, ids: Tensor, length: int, generator: torch.Generator, task: Any) -> Tensor:
    """ids (rows, begun) and what the model writes after them, int64 (rows, length), on the CPU."""
    parts, step = [ids], step_of(model, length)
    for _ in range(length - ids.shape[1]):
        chances = step(parts[-1]).float().softmax(-1)
        if not torch.isfinite(chances).all():
            raise BadInput("the model gives probabilities that are not numbers")
        parts.append(torch.multinomial(chances, 1, generator=generator))
        task.advance(len(ids))
    return torch.cat(parts, 1).cpu()
