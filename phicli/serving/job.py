"""What is asked, whatever protocol it came in, and what is made of it for the engine."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from phicli.config.setting import LARGEST
from phicli.dataset.defects import Defect
from phicli.dataset.messages import read_message, read_tools
from phicli.errors import BadInput
from phicli.inference.engine import Grammar, Request
from phicli.serving.calling import answer_grammar, opening_id
from phicli.serving.faults import Fault
from phicli.serving.service import Service
from phicli.text import Message, TextCodec
from phicli.text.calls import CallFormat, CallReader, Tool
from phicli.text.layout import NAMES, is_option

MOST_CHOICES = 16
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
ANY_OBJECT = {"type": "object"}
AUTO, NONE, REQUIRED = "auto", "none", "required"


@dataclass(frozen=True)
class Asked:
    """How prompts are to be answered.

    drawing: fields of `Sampling`, where they are given. choices: answers to each prompt. logprobs: see `Request`.
    """

    model: str | None
    drawing: Mapping[str, Any]
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    logprobs: int | None = None
    ignore_eos: bool = False
    stream: bool = False
    usage: bool = False  # at the end of a stream


@dataclass(frozen=True)
class Chat:
    """A conversation. tools, messages: as OpenAI has them. tool_choice: AUTO, NONE, REQUIRED or a tool's name.

    schema: a JSON schema that the answer has to follow; None for any text. template_kwargs: variables of the chat
    template, over those of the server.
    """

    messages: Sequence[Any]
    tools: Any = None
    tool_choice: str = AUTO
    schema: Mapping[str, Any] | None = None
    template_kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Job:
    """Requests for the engine, one for each choice, those of a prompt after each other; and how to read the answers.

    format, names: of calls of tools, where there are any.
    """

    asked: Asked
    model: str
    codec: TextCodec
    requests: tuple[Request, ...]
    format: CallFormat | None = None
    names: tuple[str, ...] = ()

    def reader(self) -> CallReader | None:
        """For one answer."""
        if self.format is None:
            return None
        return CallReader(self.format, self.names, opening_id(self.format, self.codec))


def chat_job(service: Service, asked: Asked, chat: Chat) -> Job:
    """Lay a conversation out. Takes its time: not for the event loop.

    Raises:
        Fault, BadInput, UsageError: what is wrong with it.
    """
    adapter = service.models.adapter_of(asked.model)
    codec = service.engine.codec_of(adapter)
    messages, tools, options = read_all(chat.messages), read_chosen(chat), read_options(chat)
    format = service.call_format(codec) if tools else None
    if tools and format is None:
        raise Fault(400, "the model's chat template knows no tools, or writes calls in a form that cannot be read",
                    param="tools")
    try:
        ids = codec.encode_chat(messages, tools=tools or None, options=options)
    except BadInput as e:  # of the template, which refuses them
        raise Fault(400, e.message, param="messages") from None
    except RecursionError:
        raise Fault(400, "nested too deeply") from None
    grammar = None
    if format and chat.tool_choice not in (AUTO, NONE):
        try:
            grammar = Grammar.lark(answer_grammar(codec, format, tools, None))
        except BadInput as e:
            raise Fault(400, e.message, param="tools") from None
    elif format and chat.schema is not None:
        grammar = Grammar.lark(answer_grammar(codec, format, tools, chat.schema))
    elif chat.schema is not None:
        grammar = Grammar.json_schema(chat.schema)
    names = tuple(tool["function"]["name"] for tool in tools)
    return replace(prompts_job(service, asked, [ids], grammar), format=format, names=names)


def prompts_job(service: Service, asked: Asked, prompts: Sequence[Sequence[int]], grammar: Grammar | None = None
                ) -> Job:
    """The requests for prompts in tokens. Raises as `chat_job`."""
    adapter = service.models.adapter_of(asked.model)
    if not 1 <= asked.choices * len(prompts) <= MOST_CHOICES:
        raise Fault(400, f"prompts and choices together are 1 to {MOST_CHOICES}", param="n")
    given = _given(asked)
    sampling = replace(service.engine.sampling, **{"seed": secrets.randbelow(LARGEST), **given})
    most = service.config.max_tokens
    limits = [limit for limit in (asked.max_tokens, most) if limit is not None]
    requests = tuple(
        Request(ids, adapter, replace(sampling, seed=(sampling.seed + number) % LARGEST),
                min(limits) if limits else None, asked.stop, asked.logprobs, grammar, asked.ignore_eos,
                "seed" in given or not sampling.temperature)
        for ids in prompts for number in range(asked.choices))
    return Job(asked, asked.model or service.models.base, service.engine.codec_of(adapter), requests)


def read_all(messages: Sequence[Any]) -> list[Message]:
    """Messages for a chat template. Raises Fault: 400, with the number of the message that is wrong."""
    if not messages:
        raise Fault(400, "there are no messages", param="messages")
    found = []
    for number, message in enumerate(messages):
        try:
            found.append(read_message(message))
        except Defect as e:
            raise Fault(400, f"messages[{number}]: {e.message}", param="messages") from None
    return found


def read_chosen(chat: Chat) -> tuple[Tool, ...]:
    """The tools that may be called. Raises Fault: 400."""
    try:
        tools = read_tools(chat.tools)
    except Defect as e:
        raise Fault(400, e.message, param="tools") from None
    for tool in tools:
        function = tool.get("function")
        if not isinstance(function, dict) or not TOOL_NAME.fullmatch(str(function.get("name"))):
            raise Fault(400, "a tool is no function with a name of letters, digits, '_', '.' and '-'", param="tools")
    if chat.tool_choice == NONE:
        return ()
    if chat.tool_choice in (AUTO, REQUIRED):
        if chat.tool_choice == REQUIRED and not tools:
            raise Fault(400, "a call is required and there are no tools", param="tool_choice")
        return tools
    chosen = tuple(tool for tool in tools if tool["function"]["name"] == chat.tool_choice)
    if not chosen:
        raise Fault(400, f"no tool '{chat.tool_choice[:80]}'", param="tool_choice")
    return chosen


def read_options(chat: Chat) -> Mapping[str, Any]:
    """The variables of the chat template. Raises Fault: 400, a name that is none or whose value is not the client's."""
    found = chat.template_kwargs or {}
    wrong = [name for name in found if not is_option(name) or name in NAMES]
    if wrong:
        raise Fault(400, f"chat_template_kwargs: '{wrong[0][:40]}' is no name of a variable that a request may set",
                    param="chat_template_kwargs")
    return found


def _given(asked: Asked) -> dict[str, Any]:
    """The fields of `Sampling` that a request has. Clients have larger seeds than it, and vLLM's call all tokens -1."""
    given = {name: value for name, value in asked.drawing.items() if value is not None}
    if isinstance(seed := given.get("seed"), int) and not 0 <= seed <= LARGEST:
        given["seed"] = seed % LARGEST
    if given.get("top_k") == -1:
        given["top_k"] = 0
    return given
