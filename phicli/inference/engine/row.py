"""One request on its way through an engine: its tokens, its text, and how it ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from phicli.errors import PhicliError
from phicli.inference.endings import StopText
from phicli.inference.engine.drawing import Drawing, logprob_of
from phicli.inference.engine.lookup import Lookup
from phicli.inference.engine.request import Finish, Piece, Request, TokenLogprob
from phicli.text import TextCodec

Deliver = Callable[[Piece | Finish], None]
Scores = np.ndarray | int | PhicliError  # logits, float32 [vocabulary]; for a row that is `greedy` the token will do


@dataclass(eq=False)
class Row:
    """A request and what has become of it.

    adapter: key of the one that answers, 0 for none. ends: ids that end the answer. most: tokens that it may have in
    all, prompt and answer. tokens: these; the last one may not have run yet. place: what keeps its keys and values.
    ran: tokens that have run, `cached` of them for others. lookup: what guesses its tokens, where anything does.
    guessed: tokens that were run before they were drawn, `accepted` of them rightly.
    """

    request: Request
    deliver: Deliver
    codec: TextCodec
    adapter: int
    ends: frozenset[int]
    most: int
    drawing: Drawing
    tokens: list[int] = field(init=False)
    place: Any = None
    ran: int = 0
    cached: int = 0
    lookup: Lookup | None = None
    guessed: int = 0
    accepted: int = 0
    cancelled: bool = False
    finished: bool = False

    def __post_init__(self) -> None:
        self.tokens = [int(token) for token in self.request.ids]
        self.prompt_tokens = len(self.tokens)
        self._text, self._stream = StopText(self.request.stop), self.codec.stream()

    @property
    def left(self) -> int:
        """Tokens of the prompt that have to run yet."""
        return max(0, self.prompt_tokens - self.ran)

    @property
    def greedy(self) -> bool:
        """Whether the number of the likeliest token is all that is wanted of the logits."""
        return self.drawing.likeliest and self.request.logprobs is None

    def take(self, scores: Scores) -> None:
        """Draw the next token and deliver it, and the end where it is reached.

        Raises:
            PhicliError: as `Drawing.draw`, or what came instead of scores; and what the tokenizer raises.
        """
        if isinstance(scores, PhicliError):
            raise scores
        token = scores if isinstance(scores, int) else self.drawing.draw(scores)
        self.tokens.append(token)
        if token in self.ends:
            return self.finish("stop")
        told: tuple[TokenLogprob, ...] = ()
        if self.request.logprobs is not None and not isinstance(scores, int):
            told = (logprob_of(scores, token, self.request.logprobs),)
        self._send(Piece(self._text.step(self._stream.step(token)), (token,), told))
        if self._text.found or self.drawing.complete:
            self.finish("stop")
        elif len(self.tokens) >= self.most:
            self.finish("length")

    def take_proved(self, scores: Sequence[Scores], guess: Sequence[int]) -> None:
        """Draw tokens for as long as those before were guessed rightly. Raises as `take`."""
        self.guessed += len(guess)
        for own, guessed in zip(scores, [*guess, None], strict=True):
            self.take(own)
            if self.tokens[-1] != guessed:
                return
            self.accepted += 1
            if self.finished or self.cancelled:
                return

    def finish(self, reason: Literal["stop", "length", "cancelled", "error"], error: PhicliError | None = None) -> None:
        """Deliver what was held back of the text, and the end; once."""
        if self.finished:
            return
        self.finished = True
        drawn = self.tokens[self.prompt_tokens :]
        if drawn and not self._text.found and reason != "error":
            whole = self.codec.decode([token for token in drawn if token not in self.ends])
            if whole.startswith(self._text.given) and (rest := whole[len(self._text.given) :]):
                self._send(Piece(rest, ()))
        self._send(Finish(reason, self.prompt_tokens, self.cached, len(drawn), self._text.found or None, error,
                          self.guessed, self.accepted))

    def _send(self, event: Piece | Finish) -> None:
        try:
            self.deliver(event)
        except Exception:  # of a client that is gone; it must not reach the others
            self.cancelled = True
