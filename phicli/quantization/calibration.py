"""Calibration tokens: what the layers' inputs are measured on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from phicli.artifacts.reading import read_text
from phicli.dataset import load_rows
from phicli.dataset.encoding import RowEncoder, RowSettings, row_parser
from phicli.dataset.formats import has_rows
from phicli.errors import BadInput
from phicli.hub.datasets import find_sources, stdin_as_file
from phicli.hub.vocabulary import check_vocabulary
from phicli.progress import SILENT, Progress
from phicli.quantization import CALIBRATE_ON, CALIBRATION

MOST_ROWS = 20_000  # that are looked at of the user's own
LONGEST = 256 << 20  # bytes of a calibration text; a hundred times what all samples take


class CalibrationSettings(RowSettings, Protocol):
    """Which text, and how much of it; see `phicli.config.steps.QuantizeConfig`."""

    @property
    def calibration(self) -> str | None: ...
    @property
    def samples(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def seed(self) -> int: ...


def calibration_tokens(folder: Path, settings: CalibrationSettings, progress: Progress = SILENT) -> Tensor:
    """Sequences of `seq_len` tokens, packed without padding, int64 (n, seq_len), n at most `samples`.

    Args:
        folder: of the model. settings: `calibration` is a file of rows or plain text (paragraphs between blank lines);
            None: the text in the package. Paragraphs and rows are shuffled by the seed, and used once.

    Raises:
        BadInput: no such file, nothing usable in it, or fewer than `seq_len` tokens in all.
    """
    file, samples, seq_len = settings.calibration, settings.samples, settings.seq_len
    encoder = RowEncoder(folder, settings)
    check_vocabulary(encoder.codec, settings.text_template or "")
    pieces = list(_pieces(encoder, Path(file) if file else CALIBRATION, settings))
    found = _packed(pieces, settings)
    if not len(found):
        raise BadInput(f"only {sum(map(len, pieces))} tokens, fewer than one sequence of {seq_len}",
                       where=file or CALIBRATION.name, hint="more text, or a smaller --seq-len")
    if len(found) < samples:
        progress.note(f"the calibration text is enough for {len(found)} of {samples} sequences of {seq_len} tokens")
    return found


def own_row_tokens(folder: Path, data: Sequence[str], settings: CalibrationSettings,
                   progress: Progress = SILENT) -> Tensor:
    """Sequences of the user's own rows, as `calibration_tokens` packs them; (0, seq_len) of fewer tokens than one.

    Args:
        data: as `phicli finetune --data` names it; a number of times that a file counts is not heeded.

    Raises:
        BadInput: no such data, or rows that cannot be read. Missing, RemoteError: data of the hub that cannot be had.
    """
    if not data:
        return torch.empty(0, settings.seq_len, dtype=torch.long)
    encoder = RowEncoder(folder, settings)
    check_vocabulary(encoder.codec, settings.text_template or "")
    with stdin_as_file(data) as names:
        files = [source.path for source in find_sources(names, progress=progress)]
        rows = load_rows(files, row_parser(settings), MOST_ROWS)
    return _packed([encoder.encode(content).ids for content in rows], settings)


def _packed(pieces: Sequence[list[int]], settings: CalibrationSettings) -> Tensor:
    """Pieces one after the other, in an order by the seed, cut into sequences, int64 (n, seq_len)."""
    samples, seq_len = settings.samples, settings.seq_len
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(settings.seed))
    packed: list[int] = []
    for i in order.tolist():
        packed += pieces[i]
        if len(packed) >= samples * seq_len:
            break
    count = min(samples, len(packed) // seq_len)
    return torch.tensor(packed[: count * seq_len], dtype=torch.long).view(count, seq_len)


def tokens_digest(tokens: Tensor) -> str:
    """A hash of the tokens, to record what a result was calibrated on."""
    return hashlib.sha256(json.dumps(tokens.tolist()).encode()).hexdigest()[:16]


def _pieces(encoder: RowEncoder, file: Path, settings: CalibrationSettings) -> Iterator[list[int]]:
    if has_rows(file):
        for content in load_rows(file, row_parser(settings)):
            yield encoder.encode(content).ids
        return
    try:
        text = read_text(file, LONGEST)
    except FileNotFoundError:
        raise BadInput("no such calibration file", where=file, hint=CALIBRATE_ON) from None
    codec = encoder.codec
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            yield codec.tokens.begin + codec.encode_text(paragraph.strip() + "\n\n")
