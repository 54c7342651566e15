"""Token counts of many rows at once, equal to those of `TextCodec.encode_row`."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from phicli.text import TextCodec, TextTemplate

LONG = 1 << 18  # characters; a longer text is counted in pieces, as the tokenizer takes some 500 bytes a token
Part = tuple[str, str | None]  # literal text and None, or "" and a field's name


class TokenCounter:
    """Counts a row's tokens under a template, and those that belong to each field.

    Of a text over LONG characters the count may be a token per piece too high.

    A token that reaches over the edge of a field belongs to the side it ends on, as in "\\n" + "Hello".
    """

    def __init__(self, codec: TextCodec, template: TextTemplate):
        self._tokenizer = codec.tokenizer
        self.fields = list(dict.fromkeys(template.fields))
        self._fixed = 0  # tokens that every row has
        self._segments: list[Segment] = []
        names = re.compile("|".join(map(re.escape, sorted(codec.special, key=len, reverse=True))) or r"(?!)")
        parts: list[Part] = []
        strip_left = False
        for literal, field in template.parts:
            at = 0
            for match in names.finditer(literal):
                token = codec.special[match[0]][1]
                self._close(Segment([*parts, (literal[at : match.start()], None)], strip_left, token.lstrip))
                self._fixed += 1
                parts, strip_left, at = [], token.rstrip, match.end()
            parts += [(literal[at:], None)] + ([("", field)] if field is not None else [])
        self._close(Segment(parts, strip_left, False))

    def _close(self, segment: "Segment") -> None:
        """Keep a segment that differs from row to row; count any other now."""
        if any(name for _, name in segment.parts):
            self._segments.append(segment)
        else:
            self._fixed += len(self._tokenizer.encode(segment.fill({})[1], add_special_tokens=False))

    def count(self, rows: Sequence[Mapping[str, str]]) -> tuple[list[int], dict[str, list[int]]]:
        """Tokens of each row, special tokens of the template included; and for each field, tokens in each row."""
        totals = [self._fixed] * len(rows)
        per_field = {name: [0] * len(rows) for name in self.fields}
        for segment in self._segments:
            filled = [segment.fill(row) for row in rows]
            with _threads():
                encodings = self._tokenizer.encode_batch(
                    [text if len(text) <= LONG else "" for _, text in filled], add_special_tokens=False)
            for i, (encoding, (edges, text)) in enumerate(zip(encodings, filled, strict=True)):
                if len(text) > LONG:
                    totals[i] += self._in_pieces(text)
                    for name, begin, end in edges:
                        per_field[name][i] += self._in_pieces(text[begin:end])
                    continue
                totals[i] += len(encoding)
                for name, begin, end in edges:
                    last = _token_at(encoding, end, len(text))
                    per_field[name][i] += last - _token_at(encoding, begin, len(text))
        return totals, per_field

    def _in_pieces(self, text: str) -> int:
        return sum(len(self._tokenizer.encode(text[at : at + LONG], add_special_tokens=False))
                   for at in range(0, len(text), LONG))


class Segment(NamedTuple):
    """A stretch of the template between special tokens, some of which take away the blanks beside them."""

    parts: list[Part]
    strip_left: bool
    strip_right: bool

    def fill(self, row: Mapping[str, str]) -> tuple[list[tuple[str, int, int]], str]:
        """(field, begin, end) for each field, and the text in which they stand there."""
        texts = [literal if name is None else row[name] for literal, name in self.parts]
        whole = "".join(texts)
        text = whole.lstrip() if self.strip_left else whole
        edges, end = [], len(text) - len(whole)
        for (_, name), part in zip(self.parts, texts, strict=True):
            begin, end = end, end + len(part)
            if name is not None:
                edges.append((name, max(begin, 0), max(end, 0)))
        return edges, text.rstrip() if self.strip_right else text


def _token_at(encoding: Any, position: int, length: int) -> int:
    """Index of the first token at or after a position; blanks may belong to no token."""
    if position == 0:
        return 0
    for at in range(position, length):
        token = encoding.char_to_token(at)
        if token is not None:
            return token
    return len(encoding)


@contextmanager
def _threads() -> Iterator[None]:
    """Let the tokenizer use every core, which phicli turns off elsewhere because processes fork there."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.__setitem__(name, before)
