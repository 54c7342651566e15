"""What a row says, recognised by the names of its fields: a conversation, or plain text.

To add a format: a function from fields to `Understood` and an entry in FORMATS.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from phicli.dataset.defects import Defect, check_text
from phicli.dataset.field_names import (
    CONTEXTS,
    DIALOGUES,
    PROMPTS,
    RESPONSES,
    SYSTEMS,
    TEXTS,
    TOOLS,
    dotted,
    first,
    first_of,
    names_of,
    there_are,
)
from phicli.dataset.media import check_no_media
from phicli.dataset.messages import begins_with_system, read_messages, read_tools, turns_of
from phicli.dataset.refused import answer_within, check_alone, check_label, preferred
from phicli.dataset.understood import Fields, TemplatedRow, Understood
from phicli.dataset.wrapped import check_no_columns, check_no_frame, check_no_list, check_no_message
from phicli.text import Conversation, Message, TextTemplate
from phicli.text.layout import ASSISTANT, SYSTEM, USER


class RowParser:
    """Understands rows.

    Args:
        format: a name of FORMATS; None: found for each row by its fields. columns: "prompt=question" for a row's field
            `question` in place of `prompt`; a dotted name goes into objects. template: rows are its fields.
    """

    def __init__(self, format: str | None = None, columns: Sequence[str] = (), template: TextTemplate | None = None):
        self.format, self.template = format, template
        self.columns = dict(column.split("=", 1) for column in columns)

    def read(self, fields: Fields) -> Understood:
        """Raises Defect: the row is in no known format, something is missing or wrong in it, or it has pictures."""
        found = self._read(fields)
        check_no_media(fields, found.used)
        return found

    def _read(self, fields: Fields) -> Understood:
        if self.template:
            return _templated(fields, self.template)
        if not self.columns:
            return FORMATS[self.format or recognise(fields)](fields)
        sources = {part for path in self.columns.values() for part in (path, path.split(".")[0])}
        own = {name: dotted(fields, path) for name, path in self.columns.items()}
        fields = {name: value for name, value in fields.items() if name not in sources} | own
        given = "messages" if "messages" in own else "text" if own.keys() == {"text"} else None
        named = self.format or given or recognise(fields)
        found = FORMATS[named](fields)
        return found._replace(used=found.used | sources)


def recognise(fields: Fields) -> str:
    """The name of the format in which a row with such fields is. Raises Defect: none, or preferences."""
    if ("chosen" in fields and "rejected" in fields) or "preferred_output" in fields:
        raise Defect("preference", "chosen and rejected answers are for preference training, which phicli does not do; "
                     f"{preferred(fields)} takes the preferred ones")
    named = first(fields, DIALOGUES) or ""
    dialogue = turns_of(fields.get(named))
    if isinstance(dialogue, list):
        return "sharegpt" if dialogue and isinstance(dialogue[0], dict) and "from" in dialogue[0] else "messages"
    pair = _pair(fields)
    if pair:
        return "alpaca" if pair[0].lower() == "instruction" else "prompt-response"
    check_no_message(fields)
    if text := first(fields, TEXTS):
        check_alone(fields, text)
        return "text"
    if first(fields, PROMPTS) or first(fields, RESPONSES):
        return "prompt-response"  # which says what is missing
    check_no_frame(fields)
    check_no_list(fields)
    if isinstance(dialogue, str) and dialogue.lstrip().startswith("["):
        return "messages"  # which says what is wrong
    if len(fields) == 1 and "|" in (name := next(iter(fields))):
        raise Defect("unknown_format", f"no separator was recognised in '{name[:80]}': of a table it is comma, "
                     "semicolon or tab")
    maps = "--map prompt={} --map response={}".format(*fields) if len(fields) == 2 else ""
    paste = f" (if they are question and answer: {maps})" if re.fullmatch(r"[\w =-]+", maps) else ""
    raise Defect("unknown_format", f"no format has these fields: {names_of(fields)}{paste}")


def _messages(fields: Fields) -> Understood:
    check_label(fields)
    name = first(fields, DIALOGUES) or "messages"
    tools = first(fields, TOOLS)
    turns = turns_of(fields.get(name))
    system, looked_at = _system(fields, turns)
    if system and isinstance(turns, list):
        turns = [{"role": SYSTEM, "content": _text(fields, system)}, *turns]
    messages, trained = read_messages(turns, name)
    found = Conversation(messages, trained, read_tools(fields.get(tools)) if tools else ())
    return Understood(found, "messages", _said(messages), _used((name, tools, *looked_at)))


def _system(fields: Fields, turns: Any) -> tuple[str | None, tuple[str, ...]]:
    """The field of a system message, and those that are used or empty: none where the messages begin with one, which
    LLaMA-Factory takes too."""
    system = next((name for name in SYSTEMS if fields.get(name)), None)
    return (None, ()) if system and begins_with_system(turns) else (system, SYSTEMS)


def _sharegpt(fields: Fields) -> Understood:
    return _messages(fields)._replace(format="sharegpt")


def _pairs(fields: Fields) -> Understood:
    """Alpaca's instruction, input and output, and all other pairs; each may be a list of messages, as TRL has them."""
    check_label(fields)
    pair = _pair(fields)
    if not pair:
        wanted = "response" if first(fields, PROMPTS) else "prompt"
        more = (answer_within(fields) if wanted == "response" else "") + there_are(fields)
        raise Defect("missing_field", f"no field '{wanted}', nor another that means it{more}", wanted)
    prompt, response = pair
    if not isinstance(fields[prompt], str):
        check_no_columns(fields, pair)
    context = next((name for name in CONTEXTS if name not in pair and fields.get(name)), None)
    system, looked_at = _system(fields, fields[prompt])
    history = "history" if fields.get("history") else None
    tools = first(fields, TOOLS)
    before = [{"role": SYSTEM, "content": _text(fields, system)}] if system else []
    before += _history(fields["history"]) if history else []
    earlier = len(before)  # their answers are learnt, as LLaMA-Factory does; those in a list of messages are asked
    asked, said = (_side(fields, name) for name in pair)
    if context and isinstance(asked, str):
        asked = f"{asked}\n\n{_text(fields, context)}"
    before += asked if isinstance(asked, list) else [{"role": USER, "content": asked}]
    after = said if isinstance(said, list) else [{"role": ASSISTANT, "content": said}]
    kept = (prompt, context, system, response)
    if history or isinstance(asked, list) or isinstance(said, list):  # somebody else's messages
        messages, trained = read_messages(before + after, prompt)
        texts = _said(messages)
    else:
        messages, trained = (*before, *after), (False,) * len(before) + (True,)
        texts = [(name, fields[name]) for name in kept if name]
    learnt = tuple(t and not earlier <= at < len(before) for at, t in enumerate(trained))
    found = Conversation(messages, learnt, read_tools(fields[tools]) if tools else ())
    named = "alpaca" if prompt.lower() == "instruction" else "prompt-response"
    return Understood(found, named, texts, _used((*kept, tools, *CONTEXTS, *looked_at, "history")))


def _plain(fields: Fields) -> Understood:
    name = first(fields, TEXTS)
    if name is None:
        raise Defect("missing_field", f"no field 'text'{there_are(fields)}", "text")
    text = _text(fields, name)
    return Understood(text, "text", [(name, text)], frozenset([name]))


def _templated(fields: Fields, template: TextTemplate) -> Understood:
    names = list(dict.fromkeys(template.fields))
    for name in names:
        if name not in fields:
            raise Defect("missing_field", f"no field '{name}', which the text template names{there_are(fields)}", name)
        check_text(fields[name], name)
    used = {name: fields[name] for name in names}
    return Understood(TemplatedRow(used), "text-template", list(used.items()), frozenset(names))


FORMATS: dict[str, Callable[[Fields], Understood]] = {
    "messages": _messages, "sharegpt": _sharegpt, "alpaca": _pairs, "prompt-response": _pairs, "text": _plain,
}


@lru_cache(64)
def _used(names: tuple[str | None, ...]) -> frozenset[str]:
    return frozenset(name for name in names if name)


def _pair(fields: Fields) -> tuple[str, str] | None:
    """The names of question and answer, by the order of the lists above."""
    response = first(fields, RESPONSES)
    prompt = first_of(tuple(name for name in fields if name != response), PROMPTS)
    return (prompt, response) if prompt and response else None


def _said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """The texts of messages by role; a message that only calls a tool has none."""
    return [(m["role"], m["content"]) for m in messages if m["content"] or "tool_calls" not in m]


def _history(found: Any) -> list[dict[str, Any]]:
    """Earlier turns as LLaMA-Factory's Alpaca has them: [[question, answer], …]."""
    if not isinstance(found, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in found):
        raise Defect("bad_messages", "'history' is no list of [question, answer]", "history")
    return [{"role": role, "content": turn[at]} for turn in found for at, role in enumerate((USER, ASSISTANT))]


def _text(fields: Fields, name: str) -> str:
    check_text(fields[name], name)
    return str(fields[name])


def _side(fields: Fields, name: str) -> Any:
    """A question or an answer: a text, or a list of messages, which may be one alone."""
    found = fields[name]
    if isinstance(found, dict) and ("role" in found or "from" in found):
        return [found]
    return found if isinstance(found, list) else _text(fields, name)
