"""A conversation as a file: one row of JSON with its messages, as `finetune` reads them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phicli.artifacts.private import create_file
from phicli.artifacts.reading import read_json
from phicli.errors import BadInput

LARGEST = 16 << 20  # bytes that are read
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Kept:
    """A conversation as it was kept: its turns are questions with their answers."""

    system: str | None = None
    adapter: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)


def write_chat(path: Path, system: str | None, turns: Turns) -> None:
    """Write a new file that only its owner can read. Raises BadInput: something is there already; it cannot be made."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": role, "content": text} for turn in turns
                 for role, text in zip(("user", "assistant"), turn, strict=True)]
    text = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
    try:
        with create_file(path, 0o600) as file:
            file.write(text.encode("utf-8", "replace"))
    except FileExistsError:
        raise BadInput("is there already", where=path, hint="/save with another name") from None
    except (OSError, ValueError) as e:
        raise BadInput(f"cannot be written: {getattr(e, 'strerror', None) or e}", where=path) from None


def read_chat(path: Path) -> Kept:
    """A conversation that `write_chat` wrote, or any row of messages by turns. Raises BadInput: it is none."""
    try:
        document = read_json(path, LARGEST)
    except FileNotFoundError:
        raise BadInput("no such file", where=path, hint="/load without a name lists what was kept") from None
    messages = document.get("messages") if isinstance(document, dict) else None
    if not isinstance(messages, list) or not all(
            isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        raise BadInput('no conversation; {"messages": [{"role": "user", "content": "…"}, …]} is one', where=path)
    system = messages.pop(0)["content"] if messages and messages[0].get("role") == "system" else None
    if [m.get("role") for m in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise BadInput("its messages are not those of a user and an assistant in turns", where=path)
    texts = [m["content"] for m in messages]
    return Kept(system, None, [*zip(texts[::2], texts[1::2], strict=True)])
