"""Rows that lie inside one object: what they are, and the filter of jq that takes them out."""

import re
from typing import Any

from phicli.dataset.defects import Defect
from phicli.dataset.understood import Fields

SQUAD = ".data[].paragraphs[] | .context as $context | .qas[] | {question, $context, answer: .answers[0].text}"
SPEAKERS = ("speaker", "author", "sender")  # what others call the role of a message, and its text
SAYINGS = ("text", "content", "value", "message", "utterance")
_NAME = re.compile(r"[A-Za-z_]\w{0,60}", re.ASCII)


class Wrapped(Defect):
    """An object that holds rows and is none itself. filter: of jq."""

    def __init__(self, what: str, filter: str):
        super().__init__("wrapped", f"{what}; what makes rows of it: jq -c '{filter}' FILE > rows.jsonl")
        self.filter = filter


def check_no_list(fields: Fields) -> None:
    """Raise Wrapped: a field is a list of objects, as in SQuAD. Raise Defect: the objects are messages, no rows."""
    for name, value in fields.items():
        if _NAME.fullmatch(name) and isinstance(value, list) and value and isinstance(value[0], dict):
            if name == "data" and "paragraphs" in value[0]:
                raise Wrapped("SQuAD, whose questions lie in paragraphs", SQUAD)
            if "role" in value[0] or "from" in value[0]:
                raise Defect("unknown_format", f"'{name}' is a list of messages: --map messages={name}", name)
            if "text" in value[0] and isinstance(value[0].get("label"), bool):
                raise Defect("unknown_format", f"'{name}' are parts of a text that is laid out already, as axolotl has "
                             "them, and no question and answer", name)
            speaker, said = (next((n for n in names if n in value[0]), None) for names in (SPEAKERS, SAYINGS))
            if speaker and said:
                raise Wrapped(f"'{name}' is a conversation of {speaker} and {said}",
                              f"{{messages: [.{name}[] | {{role: .{speaker}, content: .{said}}}]}}")
            raise Wrapped(f"'{name}' is a list of {len(value)} objects", f".{name}[]")


def check_no_columns(fields: Fields, names: tuple[str, str]) -> None:
    """Raise Wrapped: question and answer are lists of texts, or, as pandas writes them, objects of texts by row."""
    if all(_NAME.fullmatch(name) and _is_column(fields[name]) for name in names):
        prompt, response = names
        raise Wrapped(f"'{prompt}' and '{response}' are columns",
                      f"[.{prompt}, .{response}] | map([.[]]) | transpose[] | {{prompt: .[0], response: .[1]}}")


def _is_column(value: Any) -> bool:
    cells = list(value.values()) if isinstance(value, dict) else value
    return isinstance(cells, list) and bool(cells) and all(isinstance(cell, str) for cell in cells)
