"""Held-out rows as the tokens that every stage is measured on, and as questions that it answers."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from phicli.artifacts.reading import open_regular, read_text
from phicli.config.steps import EvaluateConfig
from phicli.dataset import load_rows
from phicli.dataset.encoding import RowEncoder, row_parser
from phicli.dataset.formats import ending
from phicli.dataset.understood import Content
from phicli.errors import BadInput
from phicli.text import Conversation, Encoded, TextCodec
from phicli.text.layout import USER, ends_said

TEXTS = (".txt", ".md", ".rst", ".text")


@dataclass(frozen=True)
class Question:
    """What a row asks at last. prompt: its text. ids: of all before the answer. reference: the row's own answer."""

    prompt: str
    ids: list[int]
    reference: str


@dataclass(frozen=True)
class HeldOut:
    """rows: never longer than the limit. cut: how many were. questions: of those rows that ask something.

    ends: ids of the tokens at which an answer ends.
    """

    rows: list[Encoded]
    cut: int
    questions: list[Question]
    ends: frozenset[int]

    @property
    def digest(self) -> str:
        """Of all ids and of what counts: equal where two builds can be compared row by row."""
        said = json.dumps([[row.ids, row.targets] for row in self.rows])
        return hashlib.sha256(said.encode()).hexdigest()


def read_held_out(files: Sequence[Path], config: EvaluateConfig, encoders: Sequence[RowEncoder]) -> HeldOut:
    """Encode rows, or plain text in pieces of `seq_len` tokens, with the first encoder.

    Rows with no response token left are no use and go.

    Raises:
        BadInput: as `load_rows`; the stages' tokenizers disagree; no row is left.
    """
    if all(map(_is_plain, files)):
        found = [row for file in files for row in _pieces(file, config, encoders)]
        return HeldOut(found[: config.rows], 0, [], frozenset())
    contents = load_rows(files, row_parser(config))[: config.rows]
    encoded = [encoders[0].encode(content) for content in contents]
    for other in encoders[1:]:
        if any(other.encode(row) != one for row, one in zip(contents, encoded, strict=True)):
            raise _disagreement(encoders[0], other)
    kept = [short for one in encoded if (short := one.cut(config.seq_len)).targets]
    if not kept:
        raise BadInput("no row has a response within the length limit", hint=f"--seq-len over {config.seq_len}")
    codec = encoders[0].codec
    asked = (_question(content, one, codec) for content, one in zip(contents, encoded, strict=True))
    return HeldOut(kept, sum(len(one.ids) > config.seq_len for one in encoded), [q for q in asked if q], _ends(codec))


def _disagreement(first: RowEncoder, other: RowEncoder) -> BadInput:
    return BadInput(f"its tokenizer gives other tokens than that of {first.codec.folder}", where=other.codec.folder,
                    hint="make this stage again from the same model")


def _is_plain(file: Path) -> bool:
    """Whether a file holds no rows but text, by its name, unless it begins as rows in JSON do."""
    if ending(file) not in TEXTS:
        return False
    with open_regular(file) as opened:
        return not opened.read(1 << 12).lstrip().startswith(b"{")


def _pieces(file: Path, config: EvaluateConfig, encoders: Sequence[RowEncoder]) -> list[Encoded]:
    text = read_text(file)
    ids = encoders[0].codec.encode_text(text)
    for other in encoders[1:]:
        if other.codec.encode_text(text) != ids:
            raise _disagreement(encoders[0], other)
    begin = encoders[0].codec.tokens.begin
    room = config.seq_len - len(begin)
    pieces = [ids[at : at + room] for at in range(0, len(ids), room)]
    found = [Encoded.counted_from([*begin, *piece], len(begin)) for piece in pieces]
    found = [one for one in found if one.targets]
    if not found:
        raise BadInput("no text in it", where=file)
    return found


def _question(content: Content, row: Encoded, codec: TextCodec) -> Question | None:
    """The last answer of a row, and what comes before it; None where the whole row is one text."""
    if not row.targets:
        return None
    begin = row.targets[-1]
    while begin and row.mask[begin - 1]:
        begin -= 1
    if not begin:
        return None
    ids, said = row.ids[:begin], codec.decode(row.ids[begin : row.targets[-1] + 1])
    for end in codec.special:
        said = said.removesuffix(end)
    prompt = codec.decode(ids)
    if isinstance(content, Conversation):
        prompt = next((str(m["content"]) for m in reversed(content.messages) if m["role"] == USER), prompt)
    return Question(prompt, ids, said.strip())


def _ends(codec: TextCodec) -> frozenset[int]:
    """By the model's settings, its tokenizer's and its chat template."""
    named = [*codec.end_of_text, *ends_said(codec.folder)]
    with suppress(BadInput):
        end = codec.turns.end
        named += [codec.special[end][0]] if end else []
    return frozenset(named)
