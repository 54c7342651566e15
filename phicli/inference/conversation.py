"""A conversation of several turns over one key-value cache.

Before each answer the whole conversation is laid out by the model's chat template, so the model always sees exactly
what the template says. Of these tokens only those run that the cache does not hold: the cache is cut back to the
common beginning and the rest appended. (The tokens of an answer, read again as text, can differ from those drawn.)
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from phicli.config.setting import checked
from phicli.config.steps import ChatConfig
from phicli.errors import BadInput, UsageError
from phicli.export.graph_file import REBUILD
from phicli.inference.answer import Answer
from phicli.inference.endings import StopText, is_prose, repeated
from phicli.inference.generator import PREFILL_CHUNK, Generator
from phicli.inference.sampling import Sampling
from phicli.inference.session import Session

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

    def __init__(self, session: Session, *, adapter: str | None = None, system: str | None = None,
                 sampling: Sampling | None = None, max_new_tokens: int = 256, stop: str | Sequence[str] = ()):
        self.session, self.sampling = session, sampling or Sampling()
        self.max_new_tokens = checked(ChatConfig, "max_new_tokens", max_new_tokens)
        self.system, self.stop = checked(ChatConfig, "system", system), checked(ChatConfig, "stop", stop)
        self.turns: list[tuple[str, str]] = []
        self.adapter: str | None = None
        self.last: Answer | None = None
        self._generator: Generator | None = None
        self._capacity = 0
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

    def use_session(self, session: Session) -> None:
        """Go on with another session of the same model: turns, system message and adapter stay, the cache goes."""
        self.session, self._generator = session, None

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
        begun = time.perf_counter()
        ids, dropped = self._fit(text)
        try:
            generator, cached = self._prepare(len(ids) + self.max_new_tokens, ids)
            prefill_begun = time.perf_counter()
            ready = self._prefill(generator, ids[cached:], stopped)
            spoken, times, reason = self._decode(generator, stopped, on_text) if ready else ("", [], "interrupted")
            if times and not spoken and np.isnan(generator.logits()).any():  # a whole copy: not at every answer
                raise BadInput("the model's logits are not numbers", where=self.session.folder, hint=REBUILD)
        except BaseException:
            self._generator = None  # what it holds now is unknown
            raise
        self.turns = self.turns[dropped:]
        if spoken or reason != "interrupted":
            self.turns.append((text, spoken))
        first, last = (times[0], times[-1]) if times else (time.perf_counter(),) * 2
        self.last = Answer(spoken, reason, self.adapter, len(ids), cached, len(times), dropped,
                           first - begun, first - prefill_begun, last - first)
        return self.last

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

    def _prepare(self, needed: int, ids: Sequence[int]) -> tuple[Generator, int]:
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
        self._generator = self.session.generator(self._capacity, self.adapter, self.sampling)
        if long:
            self._generator.expect_long()
        return self._generator, 0

    def _prefill(self, generator: Generator, ids: Sequence[int], stopped: Callable[[], bool]) -> bool:
        """Run the prompt's tokens; False when it was stopped on the way."""
        for start in range(0, len(ids), PREFILL_CHUNK):
            if stopped():
                return False
            generator.append_tokens(ids[start : start + PREFILL_CHUNK])
        return True

    def _decode(self, generator: Generator, stopped: Callable[[], bool],
                on_text: Callable[[str], None]) -> tuple[str, list[float], str]:
        """Generate; returns the answer, the time at which each token was there, and why it ended."""
        codec = self.session.codec
        ends = self.session.end_ids | {codec.special[stop][0] for stop in self.stop if stop in codec.special}
        stream, text = codec.stream(), StopText(self.stop)
        drawn: list[int] = []
        times: list[float] = []
        reason = "length"
        while len(times) < self.max_new_tokens:
            if stopped():
                reason = "interrupted"
                break
            if generator.token_count() >= self._capacity:
                reason = "context"
                break
            token = generator.next_token()
            times.append(time.perf_counter())
            if token in ends:
                reason = "stop"
                break
            drawn.append(token)
            if piece := text.step(stream.step(token)):
                on_text(piece)
            if text.found:
                return text.given, times, "stop"
            block = repeated(drawn) if self.sampling.temperature == 0 else ()
            if block and is_prose(codec.decode(block), text.given):
                reason = "repetition"
                break
        whole = codec.decode(drawn)
        if whole.startswith(text.given) and len(whole) > len(text.given):
            on_text(whole[len(text.given) :])  # what was held back: half a stop text, bytes that are no character
        return whole, times, reason


def _common_length(a: Sequence[int] | np.ndarray, b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    same = np.asarray(a[:n]) == np.asarray(b[:n])
    return n if same.all() else int(same.argmin())
