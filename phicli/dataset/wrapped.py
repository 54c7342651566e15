"""Rows that lie inside one object, or of which each has one message only: what they are, and jq's filter for rows."""

import re
from typing import Any

from phicli.dataset.defects import Defect
from phicli.dataset.field_names import DIALOGUES, PROMPTS, RESPONSES, first
from phicli.dataset.messages import ROLES
from phicli.dataset.understood import Fields

SQUAD = ".data[].paragraphs[] | .context as $context | .qas[] | {question, $context, answer: .answers[0].text}"
SPEAKERS = ("speaker", "author", "sender")  # what others call the role of a message, and its text
TREE = ('INDEX(.message_id) as $by | .[] | select(.role == "assistant") | {prompt: ([recurse($by[.parent_id // ""] // '
        'empty)][1:] | reverse | map({role, content: .text})), response: .text}')  # of OASST
CONVERSATIONS = ("conversation_id", "conv_id", "thread_id", "session_id", "chat_id", "dialog_id", "dialogue_id")
SAYINGS = ("text", "content", "value", "message", "utterance")
KNOWN = (*PROMPTS, *RESPONSES, *DIALOGUES)
_NAME = re.compile(r"[A-Za-z_]\w{0,60}", re.ASCII)


class Wrapped(Defect):
    """An object that holds rows and is none itself, or a part of one. filter: of jq. slurped: of all rows at once."""

    def __init__(self, what: str, filter: str, code: str = "wrapped", slurped: bool = False):
        self.jq = f"jq -c{'s' if slurped else ''} '{filter}'"
        super().__init__(code, f"{what}; what makes rows of it: {self.jq} FILE > rows.jsonl")


SPLIT = ".columns as $columns | .data[] | [$columns, .] | transpose | map({(.[0]): .[1]}) | add"  # as pandas has it


def check_no_frame(fields: Fields) -> None:
    """Raise Wrapped: a whole table as pandas writes it, row by row under their names, or columns and rows apart."""
    if isinstance(fields.get("columns"), list) and isinstance(fields.get("data"), list):
        raise Wrapped('\'columns\' and \'data\' are a table (orient="split" of pandas)', SPLIT)
    rows = list(fields.values())
    if rows and all(isinstance(row, dict) for row in rows) and (
            all(name.isdecimal() for name in fields) or (len(rows) > 1 and all(first(row, KNOWN) for row in rows))):
        raise Wrapped(f'an object of {len(rows)} rows (orient="index" of pandas)', ".[]")


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


def check_no_message(fields: Fields) -> None:
    """Raise Wrapped: a row is one message, as in OASST, whose role would be lost if its text were learnt alone."""
    by = next((name for name in ("role", "from") if str(fields.get(name)).lower() in ROLES), None)
    said = next((name for name in SAYINGS if isinstance(fields.get(name), str)), None)
    if not by or not said:
        return
    what = f"one message ('{by}' and '{said}'), where a row is a whole conversation"
    if {"message_id", "parent_id", "text", "role"} <= fields.keys():
        raise Wrapped(what, TREE, "bad_messages", slurped=True)
    messages = f"{{messages: map({{role: .{by}, content: .{said}}})}}"
    if known := next((name for name in CONVERSATIONS if name in fields), None):
        raise Wrapped(what, f"group_by(.{known})[] | {messages}", "bad_messages", slurped=True)
    raise Wrapped(f"{what}, perhaps the file (--format text learns the text alone)", messages, "bad_messages", True)


def check_no_columns(fields: Fields, names: tuple[str, str]) -> None:
    """Raise Wrapped: question and answer are lists of texts, or, as pandas writes them, objects of texts by row."""
    if all(_NAME.fullmatch(name) and _is_column(fields[name]) for name in names):
        prompt, response = names
        raise Wrapped(f"'{prompt}' and '{response}' are columns",
                      f"[.{prompt}, .{response}] | map([.[]]) | transpose[] | {{prompt: .[0], response: .[1]}}")


def _is_column(value: Any) -> bool:
    cells = list(value.values()) if isinstance(value, dict) else value
    return isinstance(cells, list) and bool(cells) and all(isinstance(cell, str) for cell in cells)
