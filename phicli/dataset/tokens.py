"""Token counts of many rows at once, equal to those of `TextCodec.encode_row`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from phicli.text import TextCodec, TextTemplate

LONG = 1 << 18  # characters; a longer text is counted in pieces, as the tokenizer takes some 500 bytes a token


class TokenCounter:
    """Counts a row's tokens under a template, and those that belong to each field.

    Of a text over LONG characters the count may be a token per piece too high.

    A token that reaches over the edge of a field belongs to the side it ends on, as in "\\n" + "Hello". Blanks that a
    control token takes from beside it belong to that token.
    """

    def __init__(self, codec: TextCodec, template: TextTemplate):
        self._tokens = codec.tokens
        self.fields = list(dict.fromkeys(template.fields))
        self._parts = [(codec.tokens.aliased(literal), name) for literal, name in template.parts]

    def count(self, rows: Sequence[Mapping[str, str]]) -> tuple[list[int], dict[str, list[int]]]:
        """Tokens of each row, control tokens of the template included; and for each field, tokens in each row.

        Raises:
            BadInput: a text that the tokenizer cannot encode.
        """
        totals: list[int] = []
        per_field = {name: [0] * len(rows) for name in self.fields}
        filled = [self._fill(row) for row in rows]
        with _threads():
            encodings = self._tokens.encode_batch([text if len(text) <= LONG else "" for _, text in filled])
        for i, (encoding, (edges, text)) in enumerate(zip(encodings, filled, strict=True)):
            if len(text) > LONG:
                totals.append(sum(self._in_pieces(literal) for literal, _ in self._parts))
                for name, begin, end in edges:
                    found = self._in_pieces(text[begin:end])
                    per_field[name][i] += found
                    totals[i] += found
                continue
            ids = encoding.ids
            totals.append(len(ids))
            for name, begin, end in edges:
                last = self._token_at(encoding, ids, end, text)
                per_field[name][i] += last - self._token_at(encoding, ids, begin, text)
        return totals, per_field

    def _fill(self, row: Mapping[str, str]) -> tuple[list[tuple[str, int, int]], str]:
        """(field, begin, end) for each field, and the text in which they stand there."""
        edges, text = [], ""
        for literal, name in self._parts:
            text += literal
            if name is not None:
                edges.append((name, len(text), len(text) + len(row[name])))
                text += row[name]
        return edges, text

    def _in_pieces(self, text: str) -> int:
        return sum(len(self._tokens.encode(text[at : at + LONG])) for at in range(0, len(text), LONG))

    def _token_at(self, encoding: Any, ids: Sequence[int], position: int, text: str) -> int:
        """Index of the first token at or after a position; blanks may belong to no token, or to a control token."""
        if position == 0:
            return 0
        for at in range(position, len(text)):
            token = encoding.char_to_token(at)
            if token is not None and not (ids[token] in self._tokens.real and text[at].isspace()):
                return token
        return len(ids)


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
