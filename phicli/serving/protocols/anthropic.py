"""Anthropic's `/v1/messages`."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field

from phicli.serving.answering import Event
from phicli.serving.bodies import Body
from phicli.serving.choices import Choice, Delta, Usage
from phicli.serving.faults import Fault
from phicli.serving.job import AUTO, NONE, REQUIRED, Asked, Chat, Job, chat_job
from phicli.serving.service import Service
from phicli.text import Message
from phicli.text.calls import Call

CHOICES = {"auto": AUTO, "any": REQUIRED, "none": NONE}


class Format(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    format: Format | None = None


class ToolChoice(Body):
    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None


class Turn(Body):
    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]


class CountBody(Body):
    """What has to be known to count a prompt's tokens."""

    instead: ClassVar[Mapping[str, str | None]] = {"output_format": "output_config.format", "mcp_servers": "tools"}

    model: str | None = None
    messages: list[Turn]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def chat(self) -> Chat:
        """Raises Fault: 400, a kind of block that is not known."""
        messages = list[Message]()
        if self.system:
            messages.append({"role": "system", "content": _text(self.system, "system")})
        for number, turn in enumerate(self.messages):
            messages += _messages(turn, f"messages.{number}")
        chosen = self.tool_choice
        named = chosen and chosen.type == "tool"
        return Chat(messages, [_tool(tool) for tool in self.tools or ()],
                    (chosen.name or "") if chosen and named else CHOICES[chosen.type] if chosen else AUTO,
                    self.output_config.format.schema_ if self.output_config and self.output_config.format else None,
                    self.chat_template_kwargs)

    def job(self, service: Service) -> Job:
        """Raises as `chat_job`."""
        return chat_job(service, Asked(self.model, {}), self.chat())


class MessagesBody(CountBody):
    """The request."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None

    def job(self, service: Service) -> Job:
        if self.messages and self.messages[-1].role == "assistant":
            raise Fault(400, "the last message is the assistant's: an answer that is begun is not gone on with here",
                        param="messages")
        drawing = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        asked = Asked(self.model, drawing, self.max_tokens, tuple(self.stop_sequences or ()), stream=bool(self.stream))
        return chat_job(service, asked, self.chat())


class MessagesWriter:
    """The answer: a block of text, unless there is none, and a block a call."""

    anthropic = True
    fields = MappingProxyType({"ids": "messages", "grammar": "output_config.format", "stop": "stop_sequences"})

    def __init__(self, job: Job):
        self.job, self._block, self._open = job, -1, False
        self.about = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": job.model}

    def begin(self) -> Iterator[Event]:
        usage = {"input_tokens": len(self.job.requests[0].ids), "output_tokens": 0}
        yield _event("message_start", message=self.about | {
            "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage})

    def step(self, delta: Delta, choice: Choice) -> Iterator[Event]:
        if delta.text or (delta.finish and not choice.text and not choice.calls):
            if not self._open:
                yield self._start({"type": "text", "text": ""})
                self._open = True
            yield self._delta({"type": "text_delta", "text": delta.text})
        if self._open and delta.finish:
            yield self._stop()
        for call in delta.calls:
            yield self._start(_block(call) | {"input": {}})
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
            yield self._stop()

    def end(self, choices: list[Choice]) -> Iterator[Event]:
        choice, = choices
        yield _event("message_delta", delta=_reason(choice), usage=self._usage(choices))
        yield _event("message_stop")

    def failed(self, fault: Fault) -> Iterator[Event]:
        yield "error", fault.document(True)

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        choice, = choices
        text = [{"type": "text", "text": choice.text}] if choice.text or not choice.calls else []
        return self.about | {"content": [*text, *map(_block, choice.calls)], **_reason(choice),
                             "usage": self._usage(choices)}

    def _usage(self, choices: list[Choice]) -> dict[str, int]:
        usage = Usage.of(self.job, choices)
        return {"input_tokens": usage.prompt - usage.cached, "cache_read_input_tokens": usage.cached,
                "cache_creation_input_tokens": 0, "output_tokens": usage.completion}

    def _start(self, block: dict[str, Any]) -> Event:
        self._block += 1
        return _event("content_block_start", index=self._block, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> Event:
        return _event("content_block_delta", index=self._block, delta=delta)

    def _stop(self) -> Event:
        return _event("content_block_stop", index=self._block)


def _event(kind: str, **more: Any) -> Event:
    return kind, {"type": kind, **more}


def _reason(choice: Choice) -> dict[str, Any]:
    stop = choice.finish.stop_text if choice.finish else None
    reason = {"tool_calls": "tool_use", "length": "max_tokens"}.get(choice.reason) or (
        "stop_sequence" if stop else "end_turn")
    return {"stop_reason": reason, "stop_sequence": stop if reason == "stop_sequence" else None}


def _block(call: Call) -> dict[str, Any]:
    try:
        given = json.loads(call.arguments)
    except ValueError:
        given = {}
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name, "input": given}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom" or "input_schema" not in tool:
        raise Fault(400, "only tools with an input_schema are known here", param="tools")
    return {"type": "function", "function": {"name": tool.get("name"), "description": tool.get("description", ""),
                                             "parameters": tool["input_schema"]}}


def _messages(turn: Turn, where: str) -> list[Message]:
    """A turn as OpenAI's messages: results of tools come before what the user says beside them."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    found, texts, calls = list[Message](), list[str](), list[dict[str, Any]]()
    for block in turn.content:
        kind = block.get("type")
        if kind == "text":
            texts.append(_text([block], where))
        elif kind == "tool_result" and turn.role == "user":
            found.append({"role": "tool", "content": _text(block.get("content") or "", where),
                          "tool_call_id": str(block.get("tool_use_id"))})
        elif kind == "tool_use" and turn.role == "assistant":
            calls.append({"id": block.get("id"), "type": "function",
                          "function": {"name": block.get("name"), "arguments": block.get("input") or {}}})
        elif kind not in ("thinking", "redacted_thinking"):
            raise Fault(400, f"a block of the kind '{str(kind)[:40]}' is not known here", param=where)
    if texts or calls or not found:
        found.append({"role": turn.role, "content": "".join(texts), **({"tool_calls": calls} if calls else {})})
    return found


def _text(content: str | Sequence[Any], where: str) -> str:
    if isinstance(content, str):
        return content
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise Fault(400, "has parts that are no text, such as pictures", param=where)
    return "".join(map(str, parts))
