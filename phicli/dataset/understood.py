"""What a row says, once it is understood, and when two rows say the same."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from phicli.text import Conversation
from phicli.text.layout import USER

Fields = Mapping[str, Any]


class TemplatedRow(NamedTuple):
    """Fields that go into a text template."""

    fields: Fields


Content = Conversation | str | TemplatedRow


def question(content: Content) -> str:
    """What a row asks first: its first message of a user, or else the first text in it."""
    if isinstance(content, Conversation):
        asked = [m["content"] for m in content.messages if m["role"] == USER]
        return str(asked[0] if asked else content.messages[0]["content"])
    return content if isinstance(content, str) else str(next(iter(content.fields.values())))


class Understood(NamedTuple):
    """What a row says; its format; the texts in it, each with the name of its field (or role); the fields used."""

    content: Content
    format: str
    texts: list[tuple[str, str]]
    used: frozenset[str]


def row_hash(row: Understood) -> int:
    """64 bits of a row's texts without the blanks around them, its calls of tools, and what of it is learnt."""
    texts, content = [text.strip() for _, text in row.texts], row.content
    if isinstance(content, Conversation):
        texts.append("".join("01"[learnt] for learnt in content.trained))
        texts += [json.dumps(m["tool_calls"]) for m in content.messages if "tool_calls" in m]
        texts += [json.dumps(content.tools)] if content.tools else []
    return _hash(texts)


def prompt_hash(row: Understood) -> int:
    """64 bits of what a row asks: of a conversation all before the first answer that is learnt, see `asked`."""
    content = row.content
    if isinstance(content, Conversation):
        return _hash([part for m in content.asked for part in (
            m["role"], str(m["content"]).strip(), json.dumps(m["tool_calls"]) if "tool_calls" in m else "")])
    texts = [text.strip() for _, text in row.texts]
    return _hash(texts[:-1] or texts)


def joined(texts: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Texts by name; those of one name on lines of their own."""
    found: dict[str, str] = {}
    for name, text in texts:
        found[name] = f"{found[name]}\n{text}" if name in found else text
    return found


def _hash(texts: Sequence[str]) -> int:
    parts = [text.encode("utf-8", "replace") for text in texts]
    said = b"".join([*parts, *(b"%d " % len(part) for part in parts)])  # the lengths tell where each ends
    return int.from_bytes(blake2b(said, digest_size=8).digest(), "little")
