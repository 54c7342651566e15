"""A conversation of several turns over one key-value cache.

Before each answer the whole conversation is laid out by the model's chat template, so the model always sees exactly
what the template says. Of these tokens only those run that the cache does not hold: the cache is cut back to the
common beginning and the rest appended. (The tokens of an answer, read again as text, can differ from those drawn.)
"""

import contextlib
from collections import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from phicli.config.commands import ChatConfig
from phicli.config.setting import LARGEST, checked
from phicli.errors import BadInput, UsageError
from phicli.inference.answer import Answer, Draft, StopWatch
from phicli.inference.endings import StopText, is_prose, repeated
from phicli.inference.generator import PREFILL_CHUNK
from phicli.inference.sampling import Sampling

if TYPE_CHECKING:
    from phicli.inference.engine.together import TogetherGenerator, TogetherSession
    from phicli.inference.generator import Generator
    from phicli.inference.session import Session

    Tokens = Generator | TogetherGenerator

CACHE_STEP = 1024  # tokens; the cache is reserved whole, and at the full context of a large model would not fit


def _ignore(text: str) -> None:
    pass


def _never() -> bool:
    return False


class Conversation:
    """Turns of a user and a model. One thread at a time may use it; others may have their own on the same session.

    Args:
        session: the model. adapter: name of the adapter that answers; None for none.
        system: the system message. max_new_tokens: longest answer. sampling: greedy, unless given; `session.sampling`
            is the model's own. stop: texts that an answer ends before; control tokens such as "<|end|>" too.

    Raises:
        BadInput, UsageError: as `Session.load_adapter` does. UsageError: a setting of `ChatConfig` out of range.
    """

    def __init__(self, session: "Session | TogetherSession", *, adapter: str | None = None, system: str | None = None,
                 sampling: Sampling | None = None, max_new_tokens: int = 256, stop: str | Sequence[str] = ()):
        self.session, self.sampling = session, sampling or Sampling()
        self.max_new_tokens = checked(ChatConfig, "max_new_tokens", max_new_tokens)
        self.system, self.stop = checked(ChatConfig, "system", system), checked(ChatConfig, "stop", stop)
        self.turns: list[tuple[str, str]] = []
        self.adapter: str | None = None
        self.last: Answer | None = None
        self._generator: Tokens | None = None
        self._capacity = self._taken_back = 0
        self.use_adapter(adapter)

    @property
    def merges_system(self) -> bool:
        """Whether the system message becomes part of the first question, because the chat template takes none."""
        return bool(self.system) and self.session.codec_of(self.adapter).layout.refuses_system

    def use_adapter(self, name: str | None) -> None:
        """Answer with another adapter from now on. What is cached was computed with the old one, so it goes.

        Raises:
            BadInput, UsageError: as `Session.load_adapter` does; the conversation goes on as it was.
        """
        if name is not None:
            self.session.load_adapter(name)
        if name != self.adapter:
            self._generator = None
        self.adapter = name

    def use_session(self, session: "Session | TogetherSession") -> None:
        """Go on with another session of the same model: turns, system message and adapter stay, the cache goes."""
        self.session, self._generator = session, None

    def use_sampling(self, sampling: Sampling) -> None:
        """Draw tokens otherwise from now on. genai settles that with the cache, so what is cached goes."""
        if sampling != self.sampling:
            self._generator = None
        self.sampling = sampling

    def take_back(self) -> None:
        """Forget the last turn, if there is one. Where answers are sampled, its question gets another one."""
        del self.turns[-1:]
        self._taken_back += 1

    def reset(self) -> None:
        """Forget all turns; system message and adapter stay."""
        self.turns, self.last, self._generator = [], None, None

    @property
    def cached_tokens(self) -> int:
        return self._generator.token_count() if self._generator is not None else 0

    def ask(self, text: str, on_text: Callable[[str], None] = _ignore,
            stopped: Callable[[], bool] = _never) -> Answer:
        """Answer the next message.

        Args:
            on_text: gets the answer piece by piece. stopped: asked between tokens; True ends the answer.

        Raises:
            UsageError: an empty message, or the session is closed.
            BadInput: longer than the context, even with no older turn.
        """
        if not isinstance(text, str):
            raise UsageError(f"the prompt is no text but {type(text).__name__}")
        if not text.strip():
            raise UsageError("the prompt is empty", hint="phicli chat --prompt TEXT")
        with contextlib.closing(self.stream(text, stopped)) as pieces:
            for piece in filter(None, pieces):
                on_text(piece)
        assert self.last is not None
        return self.last

    def stream(self, text: str, stopped: Callable[[], bool] = _never) -> abc.Generator[str, None, None]:
        """Answer the next message, piece by piece; afterwards `last` is the answer.

        After every token, and every part of the prompt, something is yielded, if only "", so that several conversations
        can answer in turns. The time until the next piece is asked for counts as the answer's only where their runs
        are shared.

        Raises as `ask`, when the first piece is asked for. An answer that is given up half-way is forgotten.
        """
        if not isinstance(text, str):
            raise UsageError(f"the prompt is no text but {type(text).__name__}")
        if not text.strip():
            raise UsageError("the prompt is empty", hint='phicli chat "TEXT"')
        watch = StopWatch()
        with contextlib.closing(self._answer(text, stopped, watch)) as pieces:
            for piece in pieces:
                with contextlib.nullcontext() if self.session.shares_runs else watch.paused():
                    yield piece

    def _answer(self, text: str, stopped: Callable[[], bool], watch: StopWatch) -> abc.Generator[str, None, None]:
        ids, dropped = self._fit(text)
        drawn = Draft()
        try:
            generator, cached = self._prepare(len(ids) + self.max_new_tokens, ids)
            prefill_begun = watch.seconds()
            if (yield from self._prefill(generator, ids[cached:], stopped)):
                yield from self._decode(generator, stopped, watch, drawn)
            if drawn.times and not drawn.text:
                generator.check()
        except BaseException:
            if self._generator is not None:
                self._generator.rest()
            self._generator = None  # what it holds now is unknown
            raise
        generator.rest()
        self.turns = self.turns[dropped:]
        if drawn.text or drawn.reason != "interrupted":
            self.turns.append((text, drawn.text))
        first, last = (drawn.times[0], drawn.times[-1]) if drawn.times else (watch.seconds(),) * 2
        self.last = Answer(drawn.text, drawn.reason, self.adapter, len(ids), cached, len(drawn.times), dropped,
                           first, first - prefill_begun, last - first)

    def needed(self, text: str) -> int:
        """Tokens of the laid-out conversation with this message at its end, and of the longest answer."""
        return len(self._lay_out(self.turns, text)) + self.max_new_tokens

    def _fit(self, text: str) -> tuple[list[int], int]:
        """The laid-out conversation with this message at its end, and how many old turns had to be left out.

        Where they have to be, half the context is cleared, so that the cache is not begun anew at every turn.
        """
        ids = self._lay_out(self.turns, text)
        room = min(self.max_new_tokens, self.session.context // 4)
        if len(ids) + room <= self.session.context:
            return ids, 0
        for dropped in range(1, len(self.turns) + 1):
            ids = self._lay_out(self.turns[dropped:], text)
            if len(ids) <= self.session.context // 2:
                return ids, dropped
        if len(ids) >= self.session.context:
            raise BadInput(f"the prompt has {len(ids)} tokens, the model's context is {self.session.context}")
        return ids, len(self.turns)

    def _lay_out(self, turns: Sequence[tuple[str, str]], text: str) -> list[int]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return self.session.codec_of(self.adapter).encode_chat([*messages, {"role": "user", "content": text}])

    def _prepare(self, needed: int, ids: Sequence[int]) -> "tuple[Tokens, int]":
        """A generator whose cache has room and holds only a beginning of `ids`, and how many of them it holds."""
        needed, border = min(needed, self.session.context), self.session.rope_border
        long = border is not None and len(ids) > border
        if self._generator is not None and needed <= self._capacity:
            cached = self._generator.tokens()
            # One token at least must run, since the logits after it are wanted. And the token drawn last is given up:
            # genai 0.18 has not run it yet, and does not when others are appended to an answer that was cut off.
            keep = min(_common_length(cached, ids), len(ids) - 1, len(cached) - 1)
            if self._generator.long == long and self._generator.rewind_to(keep):
                return self._generator, keep
        grown = max(needed, 2 * self._capacity if self._generator is not None else 0)
        self._capacity = min(-(-grown // CACHE_STEP) * CACHE_STEP, self.session.context)
        self._generator = None  # the old cache goes before the new one is reserved
        seed = (self.sampling.seed + self._taken_back) % LARGEST  # a cache begun anew would draw what was taken back
        self._generator = self.session.generator(self._capacity, self.adapter, replace(self.sampling, seed=seed))
        if long:
            self._generator.expect_long()
        return self._generator, 0

    def _prefill(self, generator: "Tokens", ids: Sequence[int], stopped: Callable[[], bool]
                 ) -> abc.Generator[str, None, bool]:
        """Run the prompt's tokens part by part; False when it was stopped on the way."""
        for start in range(0, len(ids), PREFILL_CHUNK):
            if stopped():
                return False
            generator.append_tokens(ids[start : start + PREFILL_CHUNK])
            yield ""
        return True

    def _decode(self, generator: "Tokens", stopped: Callable[[], bool], watch: StopWatch,
                drawn: Draft) -> Iterator[str]:
        """Generate: yields the text of each token, and notes it in `drawn`."""
        codec = self.session.codec
        ends = self.session.end_ids | {codec.special[stop][0] for stop in self.stop if stop in codec.special}
        stream, text = codec.stream(), StopText(self.stop)
        tokens: list[int] = []
        drawn.reason = "length"
        while len(drawn.times) < self.max_new_tokens:
            if stopped():
                drawn.reason = "interrupted"
                break
            if generator.token_count() >= self._capacity:
                drawn.reason = "context"
                break
            token = generator.next_token()
            drawn.times.append(watch.seconds())
            if token in ends:
                drawn.reason = "stop"
                break
            tokens.append(token)
            yield text.step(stream.step(token))
            if text.found:
                drawn.text, drawn.reason = text.given, "stop"
                return
            block = repeated(tokens) if self.sampling.temperature == 0 else ()
            if block and is_prose(codec.decode(block), text.given):
                drawn.reason = "repetition"
                break
        drawn.text = codec.decode(tokens)
        if drawn.text.startswith(text.given):
            yield drawn.text[len(text.given) :]  # what was held back: half a stop text, bytes that are no character


def _common_length(a: Sequence[int] | np.ndarray, b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    same = np.asarray(a[:n]) == np.asarray(b[:n])
    return n if same.all() else int(same.argmin())
