"""What an engine is asked, and what it answers with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from phicli.errors import BadInput, PhicliError, RemoteError
from phicli.inference.engine.grammar import Grammar
from phicli.inference.sampling import Sampling

MOST_LOGPROBS = 64
MOST_STOPS = 64
GREEDY = Sampling()


class Busy(RemoteError):
    """More requests wait than may."""


class NameTaken(BadInput):
    """There is an adapter of that name."""


@dataclass(frozen=True)
class Request:
    """A prompt and how it is to be answered.

    ids: of the prompt, not empty. adapter: who answers; None for the model itself. max_tokens: None is as many as the
    context holds. stop: texts, or control tokens such as "<|end|>", that the answer ends before. logprobs: how many of
    the likeliest tokens are told beside each drawn one; None for no probabilities at all. grammar: what the answer has
    to be. ignore_eos: go on after the tokens that end an answer. repeatable: the same request is to get the same answer
    at another time, so nothing is guessed where that rounds otherwise; on a GPU it takes `fixed_batch`, see `Engine`.

    Raises:
        BadInput: no prompt, an empty stop text, or numbers that make no sense; `where` is the field.
    """

    ids: Sequence[int]
    adapter: str | None = None
    sampling: Sampling = GREEDY
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    ignore_eos: bool = False
    repeatable: bool = True

    def __post_init__(self) -> None:
        if not len(self.ids):
            raise BadInput("the prompt is empty", where="ids")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadInput("must be at least 1", where="max_tokens")
        if not all(self.stop) or len(self.stop) > MOST_STOPS:
            raise BadInput(f"a stop text is empty, or there are more than {MOST_STOPS}", where="stop")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise BadInput(f"must be 0 to {MOST_LOGPROBS}", where="logprobs")


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural logarithm of its probability as the model gave it, before anything was done to it.

    top: the likeliest tokens, likeliest first, with theirs.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Tokens that were drawn, and the text that can be shown now.

    text: "" where a character or what may be a stop text is not complete yet. logprobs: one for each id, if asked for.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finish:
    """The last event of a request.

    reason: "stop" (the model ended it, a stop text came, or its grammar is complete), "length" (max_tokens, or the
        context is full), "cancelled", "error". "tool_calls" is for those who read tools out of the text.
    cached_tokens: of the prompt, which did not run again. completion_tokens: all that were drawn, the end token too.
    guessed_tokens: that were run before they were drawn, accepted_tokens of them rightly.
    """

    reason: Literal["stop", "length", "tool_calls", "cancelled", "error"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    stop_text: str | None = None
    error: PhicliError | None = None
    guessed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class EngineStats:
    """Numbers since the engine was opened; running, waiting and kept are of now.

    slots: rows that can run at once. prompt_tokens: of all prompts that ran; cached_tokens of them were there already.
    steps: in which running rows got a token each, or more; step_seconds, prompt_seconds: spent in the model.
    guessed_tokens: that were run before they were drawn, accepted_tokens of them rightly.
    """

    running: int
    waiting: int
    slots: int
    requests: int
    generated_tokens: int
    prompt_tokens: int
    cached_tokens: int
    steps: int
    step_seconds: float
    prompt_seconds: float
    guessed_tokens: int
    accepted_tokens: int
