"""One request on its way through an engine: its tokens, its text, and how it ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from phicli.errors import PhicliError
from phicli.inference.endings import StopText
from phicli.inference.engine.drawing import Drawing, logprob_of
from phicli.inference.engine.lookup import Lookup
from phicli.inference.engine.request import Finish, Piece, Request, TokenLogprob
from phicli.inference.engine.teller import at_once
from phicli.text import TextCodec

Deliver = Callable[[Piece | Finish], None]
Reason = Literal["stop", "length", "cancelled", "error"]
Scores = np.ndarray | int | PhicliError  # logits, float32 [vocabulary]; for a row that is `greedy` the token will do


@dataclass(eq=False)
class Row:
    """A request and what has become of it.

    adapter: key of the one that answers, 0 for none. ends: ids that end the answer. most: tokens that it may have in
    all, prompt and answer. tokens: these; the last one may not have run yet. place: what keeps its keys and values.
    ran: tokens that have run, `cached` of them for others. lookup: what guesses its tokens, where anything does.
    guessed: tokens that were run before they were drawn, `accepted` of them rightly. later: takes what turns tokens
    into text and tells the client, and does it in order, at once or while the model runs on; in the second case a
    stop text is noticed when a token more was drawn, which nobody is told of.
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
    later: Callable[[Callable[[], None]], None] = at_once

    def __post_init__(self) -> None:
        self.tokens = [int(token) for token in self.request.ids]
        self.prompt_tokens = len(self.tokens)
        self._text, self._stream = StopText(self.request.stop), self.codec.stream()
        self._told = 0  # tokens that the client knows
        self._fault: Exception | None = None  # of what is told

    @property
    def left(self) -> int:
        """Tokens of the prompt that have to run yet."""
        return max(0, self.prompt_tokens - self.ran)

    @property
    def greedy(self) -> bool:
        """Whether the number of the likeliest token is all that is wanted of the logits."""
        return self.drawing.likeliest and self.request.logprobs is None

    def take(self, scores: Scores) -> None:
        """Draw the next token and have it told, and the end where it is reached.

        Raises:
            PhicliError: as `Drawing.draw`, or what came instead of scores; and what the tokenizer raises.
        """
        if self._ended():
            return
        if isinstance(scores, PhicliError):
            raise scores
        token = scores if isinstance(scores, int) else self.drawing.draw(scores)
        self.tokens.append(token)
        if token in self.ends:
            return self.finish("stop")
        told: tuple[TokenLogprob, ...] = ()
        if self.request.logprobs is not None and not isinstance(scores, int):
            told = (logprob_of(scores, token, self.request.logprobs),)
        self.later(partial(self._tell, token, told))
        if self._ended():
            return
        if self.drawing.complete:
            self.finish("stop")
        elif len(self.tokens) >= self.most:
            self.finish("length")

    def take_proved(self, scores: Sequence[Scores], guess: Sequence[int]) -> None:
        """Draw tokens for as long as those before were guessed rightly. Raises as `take`."""
        self.guessed += len(guess)
        for own, guessed in zip(scores, [*guess, None], strict=True):
            before = len(self.tokens)
            self.take(own)
            if len(self.tokens) == before or self.tokens[-1] != guessed:
                return
            self.accepted += 1
            if self.finished or self.cancelled:
                return

    def finish(self, reason: Reason, error: PhicliError | None = None) -> None:
        """Have the end told, and before it what was held back of the text; once."""
        if not self.finished:
            self.finished = True
            self.later(partial(self._tell_end, reason, error))

    def _ended(self) -> bool:
        """Whether what was told so far ends the answer. Raises what went wrong then."""
        if self._fault:
            raise self._fault
        if self._text.found:
            self.finish("stop")
        return self.finished

    def _tell(self, token: int, told: tuple[TokenLogprob, ...]) -> None:
        if self._text.found or self._fault:
            return
        try:
            text = self._text.step(self._stream.step(token))
        except Exception as e:
            self._fault = e
            return
        self._told += 1
        self._send(Piece(text, (token,), told))

    def _tell_end(self, reason: Reason, error: PhicliError | None) -> None:
        if self._fault and reason != "error":
            reason, error = "error", as_error(self._fault)
        drawn = self.tokens[self.prompt_tokens :]
        if self._text.found:
            reason, drawn = "stop" if reason == "length" else reason, drawn[: self._told]
        elif drawn and reason != "error":
            try:
                self._send_rest(drawn)
            except Exception as e:
                reason, error = "error", as_error(e)
        self._send(Finish(reason, self.prompt_tokens, self.cached, len(drawn), self._text.found or None, error,
                          self.guessed, self.accepted))

    def _send_rest(self, drawn: list[int]) -> None:
        """What was held back of the text."""
        whole = self.codec.decode([token for token in drawn if token not in self.ends])
        if whole.startswith(self._text.given) and (rest := whole[len(self._text.given) :]):
            self._send(Piece(rest, ()))

    def _send(self, event: Piece | Finish) -> None:
        try:
            self.deliver(event)
        except Exception:  # of a client that is gone; it must not reach the others
            self.cancelled = True


def as_error(error: Exception) -> PhicliError:
    """What a client is told of a fault."""
    return error if isinstance(error, PhicliError) else PhicliError(f"the model failed: {' '.join(str(error).split())}")
