"""Answers that follow a grammar: a JSON schema, a regular expression or a Lark grammar, through llguidance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from phicli.errors import BadInput, Missing

LARGEST = 1 << 20  # characters of a grammar
FIELD = "grammar"  # of a request: where its faults are
TIGHT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """A grammar in llguidance's form; made by the functions below, which check it.

    Raises:
        BadInput: not a grammar, one too large, or one with a part that llguidance has not; the message says which.
        Missing: llguidance is not installed.
    """

    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Self:
        """JSON that a schema allows, with the white space of `json.dumps`: a small model may write it for ever."""
        try:
            text = json.dumps(schema)
            return cls._checked(_library().LLMatcher.grammar_from_json_schema(_bounded(text), overrides=TIGHT))
        except (TypeError, ValueError, RecursionError) as e:
            raise BadInput(f"not a JSON schema: {e}", where=FIELD) from None

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Text that a regular expression (of Rust's regex, without look-around) matches as a whole."""
        return cls._checked(_library().LLMatcher.grammar_from_regex(_bounded(pattern)))

    @classmethod
    def lark(cls, grammar: str) -> Self:
        """Text of a grammar in llguidance's dialect of Lark."""
        return cls._checked(_library().LLMatcher.grammar_from_lark(_bounded(grammar)))

    @classmethod
    def _checked(cls, text: str) -> Self:
        failed, messages = _library().LLMatcher.validate_grammar_with_warnings(text)
        if failed:
            raise BadInput(f"not a grammar that can be followed: {' '.join(messages[0].split())[:500]}",
                           where=FIELD)
        return cls(text)


class Matcher:
    """Follows one answer through its grammar.

    Raises:
        BadInput: a grammar that is too costly to follow, from any method.
    """

    def __init__(self, vocabulary: Any, grammar: Grammar):
        self._matcher = _library().LLMatcher(vocabulary, grammar.text, log_level=0)
        self._bits = np.zeros(-(-vocabulary.vocab_size // 32), np.int32)
        self._check()

    def forbid(self, scores: np.ndarray) -> None:
        """Set the scores, float32 [vocabulary], of tokens that cannot come next to -inf."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: len(scores)]
        scores[: len(allowed)][allowed == 0] = -np.inf
        scores[len(allowed) :] = -np.inf

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of these, from the first on, could come next; raises nothing, the next method does."""
        return 0 if self._matcher.is_error() else self._matcher.validate_tokens(list(tokens))

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing can come any more."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadInput(f"the grammar cannot be followed: {' '.join(self._matcher.get_error().split())[:500]}",
                           where=FIELD)


def vocabulary_of(tokenizer: str, size: int, ends: Sequence[int]) -> Any:
    """llguidance's view of a tokenizer. tokenizer: the text of a tokenizer.json. size: of the model's logits."""
    return _library().LLTokenizer(tokenizer, n_vocab=size, eos_token=list(ends))


def _bounded(text: str) -> str:
    if len(text) > LARGEST:
        raise BadInput(f"a grammar of more than {LARGEST:,} characters", where=FIELD)
    return text


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise Missing("llguidance is not installed, which grammars need", hint="pip install 'phicli[serve]'") from None
    return llguidance
