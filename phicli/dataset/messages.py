"""Lists of messages as OpenAI, Azure OpenAI, ShareGPT and TRL have them, as those that chat templates take."""

import json
from collections.abc import Mapping
from typing import Any

from phicli.dataset.defects import Defect, check_text, kind_of
from phicli.dataset.media import check_no_media
from phicli.text import Message
from phicli.text.layout import ASSISTANT, REASONING, SYSTEM, USER

TOOL = "tool"
CALL = "function_call"
ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "human": USER, "prompter": USER,
         "assistant": ASSISTANT, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT,
         CALL: ASSISTANT, "tool": TOOL, "function": TOOL, "observation": TOOL, "function_response": TOOL,
         "ipython": TOOL}
PLAIN = (SYSTEM, USER, ASSISTANT)
KEPT = ("name", "tool_call_id", *REASONING)


def turns_of(found: Any) -> Any:
    """Messages that are JSON text, as in a table, as the list that they are; all else as it is."""
    if isinstance(found, str) and found.lstrip().startswith("["):
        try:
            return json.loads(found)
        except (ValueError, RecursionError):
            return found
    return found


def read_messages(turns: Any, field: str) -> tuple[tuple[Message, ...], tuple[bool, ...]]:
    """The messages, and which of them are learnt: the assistant's, but for those with `weight` 0 or `train` false.

    Raises:
        Defect: bad_messages, not_text, lone_surrogate, media, or nothing_to_learn.
    """
    if not isinstance(turns, list) or not turns:
        what = "text, and no list in JSON" if isinstance(turns, str) else kind_of(turns)
        raise Defect("bad_messages", f"'{field}' is {'empty' if turns == [] else what}", field)
    messages, trained = [], []
    for number, given in enumerate(turns, 1):
        turn = _in_small_letters(given)
        try:
            messages.append(read_message(turn))
        except Defect as e:
            raise Defect(e.code, f"message {number}: {e.message}", field) from None
        trained.append(messages[-1]["role"] == ASSISTANT and _learnt(turn, field, number))
    if not any(trained):
        raise Defect("nothing_to_learn", "no message of an assistant that is to be learnt", field)
    return tuple(messages), tuple(trained)


def begins_with_system(turns: Any) -> bool:
    """Whether the first of a list of messages says what the model is."""
    first = _in_small_letters(turns[0]) if isinstance(turns, list) and turns else None
    said = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return isinstance(said, str) and ROLES.get(said.lower()) == SYSTEM


def _in_small_letters(turn: Any) -> Any:
    """A message whose names are in capitals, as serializers of C# write them, with the usual ones."""
    if not isinstance(turn, dict) or "role" in turn or "from" in turn:
        return turn
    return {name.lower(): value for name, value in turn.items()}


def _learnt(turn: Mapping[str, Any], field: str, number: int) -> bool:
    """Whether a message's `weight`, or `train`, says that it is learnt; nothing, or null, does."""
    weight = next((turn[name] for name in ("weight", "train") if turn.get(name) is not None), 1)
    if not isinstance(weight, int | float):
        raise Defect("bad_messages", f"message {number}: its weight is {kind_of(weight)}, no number", field)
    return weight > 0


def read_tools(found: Any) -> tuple[Mapping[str, Any], ...]:
    """Tools as JSON schemas, given as a list or as JSON text; functions of the old API are made tools.

    Raises:
        Defect: bad_messages.
    """
    tools = _parsed(found) if isinstance(found, str) else found
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Defect("bad_messages", "'tools' is no list of objects", "tools")
    return tuple(tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool}
                 for tool in tools)


def read_message(turn: Any) -> Message:
    """One message. Raises Defect: bad_messages, not_text, lone_surrogate, media."""
    if not isinstance(turn, dict):
        raise Defect("bad_messages", f"it is {kind_of(turn)}")
    if len(turn) == 2 and isinstance(turn.get("content"), str) and turn.get("role") in PLAIN:  # most are: no time lost
        check_text(turn["content"], "content")
        return turn
    sharegpt = "from" in turn and "role" not in turn
    said, content = turn.get("from" if sharegpt else "role"), turn.get("value" if sharegpt else "content")
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if "role" not in turn and not sharegpt:
        raise Defect("bad_messages", f"it has no 'role' and no 'from', only: {', '.join(turn)[:80] or 'nothing'}")
    if role is None:
        raise Defect("bad_messages", f"its role is {str(said)[:40]!r}; there are: {', '.join(ROLES)}")
    check_no_media(turn, row=False)
    calls = _calls(turn, content if said == CALL else None)
    content = "" if said == CALL else _text_of(content, bool(calls))
    found: dict[str, Any] = {"role": role, "content": content}
    found |= {name: turn[name] for name in KEPT if isinstance(turn.get(name), str)}
    return found | ({"tool_calls": calls} if calls else {})


def _text_of(content: Any, calls: bool) -> str:
    """The text of a message, which may be a list of parts."""
    if content is None and calls:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
                 for part in content]
        if any(not isinstance(part, str) for part in parts):
            raise Defect("bad_messages", "it has parts that are no text, such as pictures")
        content = "".join(map(str, parts))
    check_text(content, "content")
    return str(content)


def _calls(turn: Mapping[str, Any], text: Any) -> list[dict[str, Any]]:
    """The calls of tools in a message, their arguments as an object if they are one."""
    found = turn.get("tool_calls") or ([{"function": turn[CALL]}] if turn.get(CALL) else [])
    if text is not None:
        found = _parsed(text)
        found = [{"function": call} for call in (found if isinstance(found, list) else [found])]
    calls = []
    for call in found if isinstance(found, list) else [found]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Defect("bad_messages", "a call of a tool has no name")
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _parsed(arguments) if arguments.strip().startswith("{") else arguments
        kept = {name: call[name] for name in ("id",) if isinstance(call.get(name), str)}
        calls.append({**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise Defect("bad_messages", "a call of a tool, or the tools, are no JSON") from None
