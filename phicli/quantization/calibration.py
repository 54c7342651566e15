"""Calibration tokens: what the layers' inputs are measured on."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from phicli.artifacts.reading import read_text
from phicli.dataset import load_rows
from phicli.dataset.formats import has_rows
from phicli.errors import BadInput
from phicli.hub.vocabulary import check_vocabulary
from phicli.progress import SILENT, Progress
from phicli.quantization import CALIBRATION
from phicli.text import TextCodec, TextTemplate

LONGEST = 256 << 20  # bytes of a calibration text; a hundred times what all samples take


def calibration_tokens(
    codec: TextCodec, file: Path | None, template: TextTemplate, samples: int, seq_len: int, seed: int,
    progress: Progress = SILENT,
) -> Tensor:
    """Sequences of `seq_len` tokens, packed without padding, int64 (n, seq_len), n at most `samples`.

    Args:
        file: JSONL (rows under the template) or plain text (paragraphs between blank lines); None: the text in the
            package. Paragraphs and rows are shuffled by the seed, and used once.

    Raises:
        BadInput: no such file, nothing usable in it, or fewer than `seq_len` tokens in all.
    """
    check_vocabulary(codec, template)
    pieces = list(_pieces(codec, Path(file) if file else CALIBRATION, template))
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))
    wanted = samples * seq_len
    packed: list[int] = []
    for i in order.tolist():
        packed += pieces[i]
        if len(packed) >= wanted:
            break
    count = min(samples, len(packed) // seq_len)
    if count == 0:
        raise BadInput(f"only {len(packed)} tokens, fewer than one sequence of {seq_len}",
                       where=file or CALIBRATION.name, hint="more text, or a smaller --seq-len")
    if count < samples:
        progress.note(f"the calibration text is enough for {count} of {samples} sequences of {seq_len} tokens")
    return torch.tensor(packed[: count * seq_len]).view(count, seq_len)


def tokens_digest(tokens: Tensor) -> str:
    """A hash of the tokens, to record what a result was calibrated on."""
    return hashlib.sha256(json.dumps(tokens.tolist()).encode()).hexdigest()[:16]


def _pieces(codec: TextCodec, file: Path, template: TextTemplate) -> Iterator[list[int]]:
    if has_rows(file):
        for row in load_rows(file, template):
            yield codec.encode_row(template, row).ids
        return
    try:
        text = read_text(file, LONGEST)
    except FileNotFoundError:
        raise BadInput("no such calibration file", where=file) from None
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            yield codec.encode_text(paragraph.strip() + "\n\n")
