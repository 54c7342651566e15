"""OpenAI's `/v1/chat/completions`."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field

from phicli.inference.engine import TokenLogprob
from phicli.serving.answering import Event
from phicli.serving.bodies import Body
from phicli.serving.choices import Choice, Delta, Usage
from phicli.serving.faults import Fault
from phicli.serving.job import ANY_OBJECT, AUTO, Chat, Job, chat_job
from phicli.serving.protocols.openai_fields import INSTEAD, Drawn, logprob_of, usage_of
from phicli.serving.service import Service
from phicli.text.calls import Call

MOST_TOP = 20


class Schema(Body):
    """Of response_format."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class Format(Body):
    """schema: where llama.cpp's clients have it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def asked(self) -> dict[str, Any] | None:
        """What the answer has to follow. Raises Fault: 400."""
        if self.type == "text":
            return None
        schema = self.schema_ if self.json_schema is None else self.json_schema.schema_
        if schema is None and self.type == "json_schema":
            raise Fault(400, "json_schema has no schema", param="response_format")
        return ANY_OBJECT if schema is None else schema


class FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class ChatBody(Drawn):
    """The request."""

    instead: ClassVar[Mapping[str, str | None]] = INSTEAD | {
        "functions": "tools", "chat_template": None, "continue_final_message": None, "audio": None,
        "web_search_options": None}

    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    response_format: Format | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def job(self, service: Service) -> Job:
        """Raises as `chat_job`."""
        top = self.top_logprobs or 0
        if not 0 <= top <= MOST_TOP:
            raise Fault(400, f"top_logprobs: must be 0 to {MOST_TOP}", param="top_logprobs")
        if top and not self.logprobs:
            raise Fault(400, "top_logprobs: goes with logprobs, true", param="top_logprobs")
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        chosen = self.tool_choice
        name = chosen.function.name if isinstance(chosen, NamedTool) else chosen or AUTO
        chat = Chat(self.messages, self.tools, name, self.response_format.asked() if self.response_format else None,
                    self.chat_template_kwargs)
        return chat_job(service, self.asked(top if self.logprobs else None), chat)


class ChatWriter:
    """The answer."""

    anthropic = False
    fields = MappingProxyType({"ids": "messages", "grammar": "response_format"})

    def __init__(self, job: Job):
        self.job = job
        self.about = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": job.model}

    def begin(self) -> Iterator[Event]:
        for choice in range(len(self.job.requests)):
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def step(self, delta: Delta, choice: Choice) -> Iterator[Event]:
        if delta.text or delta.logprobs:
            yield self._chunk(delta.choice, {"content": delta.text}, delta.logprobs)
        if delta.calls:
            calls = [{"index": at, **call} for at, call in enumerate(_calls(delta.calls))]
            yield self._chunk(delta.choice, {"tool_calls": calls})
        if delta.finish:
            yield self._chunk(delta.choice, {}, reason=choice.reason)

    def end(self, choices: list[Choice]) -> Iterator[Event]:
        if self.job.asked.usage:
            yield None, self._about_chunk | {"choices": [], "usage": usage_of(Usage.of(self.job, choices))}
        yield None, "[DONE]"

    def failed(self, fault: Fault) -> Iterator[Event]:
        yield None, fault.document(False)

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        found = []
        for number, choice in enumerate(choices):
            message: dict[str, Any] = {"role": "assistant", "content": choice.text or (None if choice.calls else ""),
                                       "refusal": None}
            if choice.calls:
                message["tool_calls"] = _calls(choice.calls)
            found.append({"index": number, "message": message, "finish_reason": choice.reason,
                          "logprobs": self._logprobs(choice.logprobs)})
        return self.about | {"object": "chat.completion", "choices": found,
                             "usage": usage_of(Usage.of(self.job, choices))}

    @property
    def _about_chunk(self) -> dict[str, Any]:
        return self.about | {"object": "chat.completion.chunk"}

    def _chunk(self, choice: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] = (),
               reason: str | None = None) -> Event:
        return None, self._about_chunk | {"choices": [{
            "index": choice, "delta": delta, "logprobs": self._logprobs(logprobs) if logprobs else None,
            "finish_reason": reason}]}

    def _logprobs(self, found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self.job.asked.logprobs is None:
            return None
        return {"content": [logprob_of(self.job.codec, one) for one in found], "refusal": None}


def _calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    return [{"id": f"call_{secrets.token_hex(12)}", "type": "function",
             "function": {"name": call.name, "arguments": call.arguments}} for call in calls]


