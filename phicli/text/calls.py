"""How a model writes calls of tools: what its own chat template puts around a call that it is shown."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phicli.errors import BadInput
from phicli.text.codec import TextCodec
from phicli.text.layout import ASSISTANT, USER

Tool = Mapping[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}
_DECODER = json.JSONDecoder()
_THOUGHT, _BLANKS = re.compile(r"^.*</think>\s*", re.S), re.compile(r"\s*")


@dataclass(frozen=True)
class Call:
    """A call of a tool; the arguments are JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class CallFormat:
    """A call is JSON between two texts, such as `<tool_call>` and `</tool_call>`; either may be empty.

    opening, closing: stripped of blanks. before, after: with the blanks that the template has.
    name, arguments: keys of the JSON object. listed: calls are a list in one such place.
    """

    opening: str
    closing: str
    before: str
    after: str
    name: str
    arguments: str
    listed: bool

    def read(self, text: str, at: int, names: Sequence[str]) -> tuple[list[Call], int] | None:
        """The calls whose JSON begins at a place of a text, and where they end; None if there are none whole."""
        try:
            found, end = _DECODER.raw_decode(text, _behind_blanks(text, at))
        except (ValueError, RecursionError):
            return None
        calls = [self._call(one, names) for one in (found if isinstance(found, list) else [found])]
        if not calls or None in calls:
            return None
        closing = _behind_blanks(text, end)
        if self.closing and text.startswith(self.closing, closing):
            end = closing + len(self.closing)
        return [call for call in calls if call], end

    def _call(self, found: Any, names: Sequence[str]) -> Call | None:
        if not isinstance(found, dict) or found.get(self.name) not in names:
            return None
        arguments = found.get(self.arguments, {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a character
            return None
        return Call(found[self.name], text)

    def schema(self, tools: Sequence[Tool]) -> dict[str, Any]:
        """A JSON schema of a call of one of the tools, or of a list with at least one."""
        one: dict[str, Any] = {"anyOf": [{
            "type": "object", "required": [self.name, self.arguments], "additionalProperties": False,
            "properties": {self.name: {"const": tool["function"]["name"]},
                           self.arguments: tool["function"].get("parameters") or {"type": "object"}}}
            for tool in tools]}
        return {"type": "array", "items": one, "minItems": 1} if self.listed else one


# For templates that show tools but no calls, by control tokens of the model's
KNOWN = {("<|tool_call|>", "<|/tool_call|>"): True, ("<tool_call>", "</tool_call>"): False}


def call_format(codec: TextCodec) -> CallFormat | None:
    """How the model of a codec writes calls; None where its template shows no tools, or calls that are no JSON."""
    name, key, value = (f"z{secrets.token_hex(4)}" for _ in range(3))
    function = {"name": name, "arguments": {key: value}}
    described = {"name": name, "description": "a", "parameters": {"type": "object", "properties": {
        key: {"type": "string"}}}}
    tools = [{"type": "function", "function": described}]
    user = {"role": USER, "content": "a"}
    call = {"role": ASSISTANT, "content": "", "tool_calls": [{"type": "function", "id": "a" * 9, "function": function}]}
    try:
        prompt = codec.render_chat([user], tools=tools)
        told = codec.render_chat([user, call], add_generation_prompt=False, tools=tools)
    except BadInput:
        return None
    if name not in prompt:
        return None
    said = told[next((at for at, (a, b) in enumerate(zip(prompt, told, strict=False)) if a != b), len(prompt)) :]
    return _found_in(said, name, {key: value}, codec.turns.end) or next(
        (CallFormat(*marks, *marks, "name", "arguments", listed) for marks, listed in KNOWN.items()
         if codec.special.keys() >= set(marks)), None)


def _found_in(said: str, name: str, arguments: Any, end: str | None) -> CallFormat | None:
    """The format of the call in what a template puts out for a turn."""
    at = said.find(name)
    for begin in (m.start() for m in re.finditer(r"[\[{]", said[: max(at, 0)])):
        try:
            found, stop = _DECODER.raw_decode(said, begin)
        except ValueError:
            continue
        one = found[0] if isinstance(found, list) and found else found
        if isinstance(one, dict) and isinstance(one.get("function"), dict):
            return None  # a call within a call: no model known to have been trained on it
        keys = {"name": next((k for k, v in one.items() if v == name), None),
                "arguments": next((k for k, v in one.items() if v == arguments), None)} if isinstance(one, dict) else {}
        if all(keys.values()) and keys:
            after = said[stop:].split(end)[0] if end else said[stop:]
            before = _THOUGHT.sub("", said[:begin])
            return CallFormat(before.strip(), after.strip(), before, after, str(keys["name"]), str(keys["arguments"]),
                              isinstance(found, list))
    return None


def _behind_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


class CallReader:
    """An answer as it comes, parted in text for people and calls of tools.

    What may be the beginning of a call is held back until it is told; what is none after all is text.
    """

    def __init__(self, format: CallFormat, names: Sequence[str], opening_id: int | None = None):
        """opening_id: of the token that begins calls, where decoded text leaves it out."""
        self._format, self._names, self._opening_id = format, names, opening_id
        self._held, self._calling = "", False
        self.said = False  # whether there was text before

    def step(self, text: str, ids: Sequence[int] = ()) -> str:
        """What may be shown now that a piece came."""
        self._held += text
        if self._calling:
            return ""
        if self._opening_id is not None and self._opening_id in ids:
            self._calling = True
            return self._shown(len(self._held) - len(text))
        opening = self._format.opening
        if self._opening_id is None and opening and opening in self._held:
            self._calling = True
            return self._shown(self._held.index(opening))
        if not opening and not self.said and self._held.lstrip()[:1] in ("", "{", "["):
            self._calling = bool(self._held.strip())  # the whole answer may be a call
            return ""
        kept = next((n for n in range(min(len(opening), len(self._held)), 0, -1)
                     if opening.startswith(self._held[-n:])), 0) if self._opening_id is None else 0
        return self._shown(len(self._held) - kept)

    def finish(self) -> tuple[str, list[Call]]:
        """At the end: text that was held back and is no call, and the calls."""
        text, calls, at = self._held, list[Call](), 0
        opening = self._format.opening if self._opening_id is None else ""
        while at < len(text):
            begin = text.find(opening, at) if opening else at
            found = self._format.read(text, begin + len(opening), self._names) if begin >= 0 else None
            if not found or text[at:begin].strip():
                break
            calls += found[0]
            at = found[1]
        rest = text[at:]
        return (rest if rest.strip() else ""), calls

    def _shown(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        self.said = self.said or bool(text.strip())
        return text
