"""Templates of one row, such as "<|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}<|end|>"."""

import string
from collections.abc import Mapping
from typing import Any

from phicli.errors import BadInput


class TextTemplate:
    """Literal text and fields.

    `{name}` takes a row's field; `{{` and `}}` are braces; `\\n`, as a shell passes it, is a new line.

    Raises:
        BadInput: no field in it, or not a valid template.
    """

    def __init__(self, template: str):
        template = template.replace("\\n", "\n")
        try:
            template.encode("utf-8")  # half of a character is no text
            parts = list(string.Formatter().parse(template))
        except ValueError as e:
            raise BadInput(f"text template: {e}", where=repr(template)) from None
        self.parts: list[tuple[str, str | None]] = []  # each field with what stands before it; then what is left
        before = ""
        for literal, name, _, _ in parts:  # a brace ends a literal too
            before += literal
            if name is not None:
                self.parts.append((before, name))
                before = ""
        self.parts += [(before, None)] if before else []
        self.fields = [name for _, name in self.parts if name is not None]
        wrong = [n for n, (_, name, spec, conversion) in enumerate(parts)
                 if name is not None and (not name.isidentifier() or spec or conversion)]
        if wrong or not self.fields:
            raise BadInput("text template needs fields like {prompt}", where=repr(template))
        self.template = template

    def pieces(self, row: Mapping[str, Any]) -> list[tuple[str, bool]]:
        """The row's text as (text, is it foreign) pieces; the last foreign piece is the response."""
        out: list[tuple[str, bool]] = []
        for literal, name in self.parts:
            out.append((literal, False))
            if name is not None:
                out.append((row[name], True))
        return [piece for piece in out if piece[0] or piece[1]]
