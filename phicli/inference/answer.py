"""An answer, and what it took."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """An answer and what it took.

    finish_reason: "stop" (the model ended it, or a stop text came), "length" (max_new_tokens), "context" (no room
        left), "repetition" (greedy, it said the same three times running), "interrupted".
    prompt_tokens: of the whole laid-out conversation; cached_tokens of them were in the cache and did not run.
    answer_tokens: those generated, the end token too. dropped_turns: old ones left out for lack of room.
    Times in seconds: first token from the question on; prefill from the first prompt token to the first answer
    token; decode from the first answer token to the last.
    """

    text: str
    finish_reason: str
    adapter: str | None
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    dropped_turns: int
    first_token_seconds: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds > 0 else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first one; None where there is none."""
        return (self.answer_tokens - 1) / self.decode_seconds if self.answer_tokens > 1 else None


@dataclass
class Draft:
    """What an answer has come to so far: its text, when each token was there, and why it ended."""

    text: str = ""
    times: list[float] = field(default_factory=list)
    reason: str = "interrupted"


class StopWatch:
    """Seconds since it was made, without those in which it was paused."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self._begun += time.perf_counter() - before
