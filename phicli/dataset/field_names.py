"""How fields are called, and how they are found in a row."""

from functools import lru_cache
from typing import Any

from phicli.dataset.defects import Defect
from phicli.dataset.understood import Fields

PROMPTS = ("prompt", "instruction", "question", "query", "input", "inputs", "user", "human", "problem")
RESPONSES = ("response", "completion", "answer", "output", "outputs", "assistant", "reply", "solution", "target",
             "targets")
DIALOGUES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
CONTEXTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
TEXTS = ("text", "content", "document")
TOOLS = ("tools", "functions")
LABELS = ("label", "kto_tag")  # in rows of KTO, TRL's and LLaMA-Factory's: whether the answer is a good one


def first(fields: Fields, names: tuple[str, ...]) -> str | None:
    return first_of(tuple(fields), names)


@lru_cache(64)  # most rows of a file have the same fields
def first_of(fields: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    """The field that has the first of these names, in capitals or not: tables are often so."""
    known = {name.strip().lower(): name for name in reversed(fields)}
    return next((known[name] for name in names if name in known), None)


def dotted(fields: Fields, path: str) -> Any:
    """`a.b.0` is the first of the list that is `b` of the object in field `a`, where no field has that very name."""
    if path in fields:
        return fields[path]
    found: Any = fields
    for part in path.split("."):
        try:
            found = found[int(part) if isinstance(found, list) else part]
        except (LookupError, TypeError, ValueError):
            raise Defect("missing_field", f"no field '{path}', which --map names{there_are(fields)}", path) from None
    return found


def names_of(fields: Fields) -> str:
    return ", ".join(str(name)[:60] for name in list(fields)[:8]) + (", …" if len(fields) > 8 else "") or "none"


def there_are(fields: Fields) -> str:
    return f"; there are: {names_of(fields)}"
