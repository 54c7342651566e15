"""One answer as it comes: text for people, calls of tools, and how it ended."""

from dataclasses import dataclass
from typing import Literal

from phicli.inference.engine import Finish, Piece, TokenLogprob
from phicli.serving.faults import Fault
from phicli.serving.job import Job
from phicli.text.calls import Call

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Delta:
    """What has come of a choice. finish: with the last one."""

    choice: int
    text: str = ""
    calls: tuple[Call, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


class Choice:
    """One row's events as deltas, and all of them together."""

    def __init__(self, job: Job, number: int):
        self._reader, self._number = job.reader(), number
        self.text, self.calls, self.logprobs = "", list[Call](), list[TokenLogprob]()
        self.finish: Finish | None = None

    def step(self, event: Piece | Finish) -> Delta:
        """Raises PhicliError: the row has failed. Fault: it was cut off."""
        if isinstance(event, Piece):
            shown = self._reader.step(event.text, event.ids) if self._reader else event.text
            return self._added(Delta(self._number, shown, (), event.logprobs))
        if event.error is not None:
            raise event.error
        if event.reason == "cancelled":
            raise Fault(503, "the server is stopping")
        rest, calls = self._reader.finish() if self._reader else ("", [])
        return self._added(Delta(self._number, rest, tuple(calls), (), event))

    @property
    def reason(self) -> Reason:
        """Why it ended, in OpenAI's words."""
        if self.calls:
            return "tool_calls"
        return "length" if self.finish and self.finish.reason == "length" else "stop"

    def _added(self, delta: Delta) -> Delta:
        self.text += delta.text
        self.calls += delta.calls
        self.logprobs += delta.logprobs
        self.finish = delta.finish or self.finish
        return delta


@dataclass(frozen=True)
class Usage:
    """Tokens of all choices; a prompt counts once, however many answers it has. accepted, rejected: of guesses."""

    prompt: int
    cached: int
    completion: int
    accepted: int
    rejected: int

    @classmethod
    def of(cls, job: Job, choices: list[Choice]) -> "Usage":
        ends = [choice.finish for choice in choices if choice.finish]
        firsts = ends[:: job.asked.choices]
        return cls(sum(end.prompt_tokens for end in firsts), sum(end.cached_tokens for end in firsts),
                   sum(end.completion_tokens for end in ends), sum(end.accepted_tokens for end in ends),
                   sum(end.guessed_tokens - end.accepted_tokens for end in ends))
