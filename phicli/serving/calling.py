"""Calls of tools that have to be made: grammars in llguidance's dialect of Lark."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from phicli.inference.engine.grammar import TIGHT
from phicli.text import TextCodec
from phicli.text.calls import CallFormat, Tool


def answer_grammar(codec: TextCodec, format: CallFormat, tools: Sequence[Tool], schema: Mapping[str, Any] | None
                   ) -> str:
    """A grammar of a call, or where there is a schema, of a call or an answer that follows it."""
    lines = [f"start: {'call' if schema is None else 'call | answer'}",
             f"call: {_terms(codec, format.before)} made {_terms(codec, format.after)}".rstrip(),
             f"made: %json {_json(format.schema(tools))}"]
    return "\n".join([*lines, *([] if schema is None else [f"answer: %json {_json(schema)}"])])


def opening_id(format: CallFormat, codec: TextCodec) -> int | None:
    """The token that begins calls, where decoded text leaves it out."""
    ident = codec.special.get(format.opening, (None, None))[0]
    return ident if ident in codec.tokens.silent else None


def _json(schema: Mapping[str, Any]) -> str:
    return json.dumps({"x-guidance": TIGHT, **schema})


def _terms(codec: TextCodec, text: str) -> str:
    """A text as a sequence of Lark's terms: control tokens by their ids, what is between them in quotes."""
    terms, at = list[str](), 0
    for match in [*codec.tokens.pattern.finditer(text), None]:
        begin, end = match.span() if match else (len(text), len(text))
        if begin > at:
            terms.append(json.dumps(text[at:begin]))
        if match:
            terms.append(f"<[{codec.special[match[0]][0]}]>")
        at = end
    return " ".join(terms)
