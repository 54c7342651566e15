"""One sequence of a model and its key-value cache, with errors in phicli's words."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phicli.errors import BadInput, PhicliError, UsageError
from phicli.export.graph_file import REBUILD
from phicli.inference.sampling import Sampling
from phicli.resources.shortage import within_memory

PREFILL_CHUNK = 512  # tokens of a long text that run at once: logits of all of them are in memory


class Generator:
    """Runs one sequence; `Session.generator` makes it. One thread at a time may use it, several may use several.

    Every method raises BadInput where the adapter or the model cannot be run, Missing where memory runs out, and
    UsageError once the session is closed.
    """

    def __init__(self, made: Any, sampling: Sampling, adapter: str | None, where: Path, border: int | None = None,
                 take_long_factors: Callable[[], None] | None = None):
        """made: an onnxruntime_genai.Generator. where: the adapter's or the model's place, for errors.

        border: of LongRoPE, None without. take_long_factors: makes what runs from now on long, wherever the border is.
        """
        self._made, self._sampling, self._border, self.long = made, sampling, border, False
        self._take_long_factors = take_long_factors
        self._fault, self._where = run_fault(adapter), where

    def expect_long(self) -> None:
        """Take LongRoPE's long factors: the tokens that come are more than its border, if not at once."""
        with self._running():
            if self._take_long_factors:
                self._take_long_factors()
                self.long = True

    def append_tokens(self, ids: Sequence[int] | np.ndarray) -> None:
        """Run these tokens, int [tokens] or [rows, tokens], after those that are cached."""
        with self._running() as made:
            tokens = np.asarray(ids, dtype=np.int32)
            if self._border and made.token_count() == 0 and tokens.shape[-1] > self._border:
                self.long = True  # by the graph itself
            made.append_tokens(tokens)

    def next_token(self) -> int:
        """Draw the next token and append it; it is run only when the one after it is drawn."""
        with self._running() as made:
            if self._border and not self.long and made.token_count() > self._border:
                self._begin_again(made)
            if self._sampling.filters:  # genai 0.18 has no min_p
                made.set_logits(self._sampling.without_unlikely(made.get_logits(), made.get_sequence(0)))
            made.generate_next_token()
            return int(made.get_next_tokens()[0])

    def _begin_again(self, made: Any) -> None:
        """Run all tokens once more, where the last one makes the sequence longer than LongRoPE's border."""
        ids = np.array(made.get_sequence(0))
        made.rewind_to(0)
        self.expect_long()
        for start in range(0, len(ids), PREFILL_CHUNK):
            made.append_tokens(ids[start : start + PREFILL_CHUNK])

    def logits(self) -> np.ndarray:
        """Logits of the tokens that ran last, [tokens, vocabulary], in the model's float type."""
        with self._running() as made:
            return np.asarray(made.get_output("logits")[0])

    def check(self) -> None:
        """Raises BadInput: the logits of the tokens that ran last are not numbers. It takes a copy of all of them."""
        if np.isnan(self.logits()).any():
            raise BadInput("the model's logits are not numbers", where=self._where, hint=REBUILD)

    def rest(self) -> None:
        """Draw no tokens ahead; none are."""

    def tokens(self) -> np.ndarray:
        """The whole sequence, int32."""
        with self._running() as made:
            return np.asarray(made.get_sequence(0))

    def token_count(self) -> int:
        """Tokens of the sequence; 0 once the session is closed, as its cache is gone."""
        made = self._made
        return int(made.token_count()) if made is not None else 0

    def rewind_to(self, length: int) -> bool:
        """Cut the sequence to its first tokens; False where the cache cannot be cut, as one with a sliding window."""
        with self._running() as made:
            try:
                made.rewind_to(length)
            except RuntimeError:
                return False
        return True

    def close(self) -> None:
        """Give the cache's memory back."""
        self._made = None

    @contextlib.contextmanager
    def _running(self) -> Iterator[Any]:
        """genai's generator, which lives until the block ends even if another thread closes the session meanwhile."""
        made = self._made
        if made is None:
            raise closed_error()
        with translated(self._fault, self._where, REBUILD):
            yield made


def closed_error() -> UsageError:
    """The error of whoever uses a model after its session was closed."""
    return UsageError("the session is closed", hint="open another: with Session(folder) as session")


def run_fault(adapter: str | None) -> str:
    """What is wrong where genai fails while it runs. Adapters that do not fit show only then."""
    return "the adapter does not fit this model" if adapter else "the model cannot be run"


@contextlib.contextmanager
def translated(message: str, where: Path, hint: str) -> Iterator[None]:
    """Turn genai's RuntimeError into BadInput with this message, or Missing where memory ran out."""
    try:
        with within_memory("chat", where):
            yield
    except PhicliError:
        raise
    except (RuntimeError, ValueError, OSError) as e:
        raise BadInput(f"{message}: {' '.join(str(e).split())}", where=where, hint=hint) from e
