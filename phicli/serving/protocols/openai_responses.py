"""OpenAI's `/v1/responses`, without what needs a memory of the server's: it keeps no conversation."""

import secrets
import time
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from phicli.serving.answering import Event
from phicli.serving.bodies import Body
from phicli.serving.choices import Choice, Delta, Usage
from phicli.serving.faults import Fault
from phicli.serving.job import ANY_OBJECT, AUTO, Asked, Chat, Job, chat_job
from phicli.serving.protocols.openai_fields import logprob_of
from phicli.serving.service import Service
from phicli.text.calls import Call

LOGPROBS = "message.output_text.logprobs"
TEXTS = ("input_text", "output_text", "text")
NEEDS_MEMORY = ("previous_response_id", "conversation", "prompt", "background")


class Format(Body):
    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class Text(Body):
    format: Format | None = None


class NamedTool(Body):
    type: Literal["function"]
    name: str


class ResponsesBody(Body):
    """The request."""

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    text: Text | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    stream: bool | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: Any = None

    def job(self, service: Service) -> Job:
        """Raises as `chat_job`."""
        for name in NEEDS_MEMORY:
            if getattr(self, name):
                raise Fault(400, f"{name}: this server keeps nothing between requests", param=name)
        format = self.text.format if self.text else None
        if format and format.type == "json_schema" and format.schema_ is None:
            raise Fault(400, "json_schema has no schema", param="text.format")
        schema = {"json_object": ANY_OBJECT, "json_schema": format.schema_}.get(format.type) if format else None
        chosen = self.tool_choice
        logprobs = self.top_logprobs or 0 if LOGPROBS in (self.include or ()) or self.top_logprobs else None
        asked = Asked(self.model, {"temperature": self.temperature, "top_p": self.top_p}, self.max_output_tokens,
                      logprobs=logprobs, stream=bool(self.stream))
        return chat_job(service, asked, Chat(
            [*([{"role": "system", "content": self.instructions}] if self.instructions else []), *self._messages()],
            [_tool(tool) for tool in self.tools or ()],
            chosen.name if isinstance(chosen, NamedTool) else chosen or AUTO, schema, self.chat_template_kwargs))

    def _messages(self) -> list[dict[str, Any]]:
        """As chat completions have them; calls that follow each other are of one message."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        found = list[dict[str, Any]]()
        for number, item in enumerate(self.input):
            kind = item.get("type", "message")
            if kind == "message":
                found.append({"role": item.get("role"), "content": _content(item.get("content"))})
            elif kind == "function_call":
                if not (found and found[-1]["role"] == "assistant"):
                    found.append({"role": "assistant", "content": ""})
                found[-1].setdefault("tool_calls", []).append({
                    "id": item.get("call_id"), "type": "function",
                    "function": {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}})
            elif kind == "function_call_output":
                found.append({"role": "tool", "content": _content(item.get("output")),
                              "tool_call_id": str(item.get("call_id"))})
            elif kind != "reasoning":
                raise Fault(400, f"an item of the kind '{str(kind)[:40]}' is not known here", param=f"input.{number}")
        return found


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [{"type": "text", "text": part.get("text")} if isinstance(part, dict) and part.get("type") in TEXTS
            else part for part in content]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise Fault(400, "only tools of the type function are known here", param="tools")
    return {"type": "function", "function": {
        "name": tool.get("name"), "description": tool.get("description") or "", "parameters": tool.get("parameters")}}


class ResponsesWriter:
    """The answer: an item with text, unless there is none, and an item a call."""

    anthropic = False
    fields = MappingProxyType({"ids": "input", "messages": "input", "grammar": "text.format", "max_tokens":
                               "max_output_tokens", "logprobs": "top_logprobs"})

    def __init__(self, job: Job):
        self.job, self._number = job, -1
        self._message, self._begun = f"msg_{secrets.token_hex(12)}", False
        self._items = list[dict[str, Any]]()
        self.about = {"id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()),
                      "model": job.model, "error": None, "incomplete_details": None, "instructions": None,
                      "metadata": {}, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
                      "temperature": job.requests[0].sampling.temperature, "top_p": job.requests[0].sampling.top_p,
                      "max_output_tokens": job.asked.max_tokens, "previous_response_id": None, "store": False}

    def begin(self) -> Iterator[Event]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response("in_progress"))

    def step(self, delta: Delta, choice: Choice) -> Iterator[Event]:
        if delta.text or (delta.finish and not choice.text and not choice.calls):
            if not self._begun:
                self._begun = True
                yield self._event("response.output_item.added", output_index=0, item=self._said([], "in_progress"))
                yield self._event("response.content_part.added", **self._part, part=self._text("", []))
            logprobs = [logprob_of(self.job.codec, one) for one in delta.logprobs]
            yield self._event("response.output_text.delta", **self._part, delta=delta.text, logprobs=logprobs)
        if self._begun and delta.finish:
            text = self._text(choice.text, choice.logprobs)
            yield self._event("response.output_text.done", **self._part, text=choice.text, logprobs=text["logprobs"])
            yield self._event("response.content_part.done", **self._part, part=text)
            self._items.append(self._said([text], "completed"))
            yield self._event("response.output_item.done", output_index=0, item=self._items[0])
        for call in delta.calls:
            yield from self._calling(_call_item(call))

    def _calling(self, item: dict[str, Any]) -> Iterator[Event]:
        at = {"output_index": len(self._items)}
        whole = {"item_id": item["id"], **at}
        yield self._event("response.output_item.added", **at, item=item | {"arguments": "", "status": "in_progress"})
        yield self._event("response.function_call_arguments.delta", **whole, delta=item["arguments"])
        yield self._event("response.function_call_arguments.done", **whole, name=item["name"],
                          arguments=item["arguments"])
        yield self._event("response.output_item.done", **at, item=item)
        self._items.append(item)

    def end(self, choices: list[Choice]) -> Iterator[Event]:
        found = self._ended(choices, self._items)
        yield self._event(f"response.{found['status']}", response=found)

    def failed(self, fault: Fault) -> Iterator[Event]:
        yield self._event("error", code=fault.code, message=fault.message, param=fault.param)

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        choice, = choices
        text = [self._said([self._text(choice.text, choice.logprobs)], "completed")]
        return self._ended(choices, [*(text if choice.text or not choice.calls else []),
                                     *map(_call_item, choice.calls)])

    def _ended(self, choices: list[Choice], items: list[dict[str, Any]]) -> dict[str, Any]:
        short = choices[0].reason == "length"
        usage = Usage.of(self.job, choices)
        return self._response("incomplete" if short else "completed") | {
            "output": items, "incomplete_details": {"reason": "max_output_tokens"} if short else None,
            "usage": {"input_tokens": usage.prompt, "input_tokens_details": {"cached_tokens": usage.cached},
                      "output_tokens": usage.completion, "output_tokens_details": {"reasoning_tokens": 0},
                      "total_tokens": usage.prompt + usage.completion}}

    @property
    def _part(self) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **more: Any) -> Event:
        self._number += 1
        return kind, {"type": kind, "sequence_number": self._number, **more}

    def _response(self, status: str) -> dict[str, Any]:
        return self.about | {"status": status, "output": []}

    def _said(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"id": self._message, "type": "message", "role": "assistant", "status": status, "content": content}

    def _text(self, text: str, logprobs: Sequence[Any]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [],
                "logprobs": [logprob_of(self.job.codec, one) for one in logprobs]}


def _call_item(call: Call) -> dict[str, Any]:
    return {"id": f"fc_{secrets.token_hex(12)}", "type": "function_call", "status": "completed", "name": call.name,
            "call_id": f"call_{secrets.token_hex(12)}", "arguments": call.arguments}
