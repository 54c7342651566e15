"""OpenAI's `/v1/completions`: text that goes on, without a chat template."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from phicli.inference.engine import TokenLogprob
from phicli.serving.answering import Event
from phicli.serving.choices import Choice, Delta, Usage
from phicli.serving.faults import Fault
from phicli.serving.job import Job, prompts_job
from phicli.serving.protocols.openai_fields import INSTEAD, Drawn, usage_of
from phicli.serving.service import Service
from phicli.text.pieces import token_bytes

MOST_TOP = 20
USUAL = 16  # tokens of an answer, as OpenAI has it


class CompletionBody(Drawn):
    """The request. A prompt is text, in which nothing is a control token, or the numbers of tokens."""

    instead: ClassVar[Mapping[str, str | None]] = INSTEAD | {"echo": None, "suffix": None}

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    best_of: int | None = None
    response_format: dict[str, Any] | None = None

    def job(self, service: Service) -> Job:
        """Raises as `prompts_job`."""
        if self.best_of not in (None, self.n or 1):
            raise Fault(400, "best_of: can only be n", param="best_of")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_TOP:
            raise Fault(400, f"logprobs: must be 0 to {MOST_TOP}", param="logprobs")
        if self.response_format and self.response_format.get("type") != "text":
            raise Fault(400, f"response_format: only text is known here; {INSTEAD['format']} takes more",
                        param="response_format")
        if self.max_tokens is None and self.n_predict is None:
            self.max_tokens = USUAL
        codec = service.engine.codec_of(service.models.adapter_of(self.model))
        many: list[Any] = self.prompt if isinstance(self.prompt, list) and not all(
            isinstance(part, int) for part in self.prompt) else [self.prompt]
        ids = [[*codec.tokens.begin, *codec.encode_text(one)] if isinstance(one, str) else one for one in many]
        return prompts_job(service, self.asked(self.logprobs), ids)


class CompletionWriter:
    """The answer."""

    anthropic = False
    fields = MappingProxyType({"ids": "prompt"})

    def __init__(self, job: Job):
        self.job = job
        self.about = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
                      "model": job.model}
        self._offsets = [0] * len(job.requests)

    def begin(self) -> Iterator[Event]:
        return iter(())

    def step(self, delta: Delta, choice: Choice) -> Iterator[Event]:
        if delta.text or delta.logprobs or delta.finish:
            yield None, self.about | {"choices": [self._choice(
                delta.choice, delta.text, delta.logprobs, choice.reason if delta.finish else None)]}

    def end(self, choices: list[Choice]) -> Iterator[Event]:
        if self.job.asked.usage:
            yield None, self.about | {"choices": [], "usage": usage_of(Usage.of(self.job, choices))}
        yield None, "[DONE]"

    def failed(self, fault: Fault) -> Iterator[Event]:
        yield None, fault.document(False)

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        return self.about | {"usage": usage_of(Usage.of(self.job, choices)), "choices": [
            self._choice(number, choice.text, choice.logprobs, choice.reason) for number, choice in enumerate(choices)]}

    def _choice(self, number: int, text: str, logprobs: Sequence[TokenLogprob], reason: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "finish_reason": reason, "logprobs": self._logprobs(number, logprobs)}

    def _logprobs(self, number: int, found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self.job.asked.logprobs is None:
            return None
        words, offsets = [self._word(one.id) for one in found], []
        for word in words:
            offsets.append(self._offsets[number])
            self._offsets[number] += len(word)
        return {"tokens": words, "token_logprobs": [one.logprob for one in found], "text_offset": offsets,
                "top_logprobs": [{self._word(ident): value for ident, value in one.top} for one in found]}

    def _word(self, ident: int) -> str:
        return token_bytes(self.job.codec.tokens, ident).decode(errors="replace")
