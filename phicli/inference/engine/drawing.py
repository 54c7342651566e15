"""Drawing one row's tokens from its logits: the same seed and request give the same tokens, whoever runs beside it."""

from collections.abc import Iterable, Sequence

import numpy as np

from phicli.errors import BadInput
from phicli.inference.engine.grammar import FIELD, Matcher
from phicli.inference.engine.request import TokenLogprob
from phicli.inference.sampling import Sampling


class Drawing:
    """What drawing a row's next token depends on, besides its logits.

    prompt: its tokens count for the repetition penalty.
    """

    def __init__(self, sampling: Sampling, prompt: Iterable[int], vocab_size: int, matcher: Matcher | None = None):
        self.sampling, self._matcher = sampling, matcher
        self._random = np.random.Generator(np.random.Philox(sampling.seed))
        self._times: np.ndarray | None = None  # each token was drawn
        self._there: np.ndarray | None = None  # bool: in the prompt, or drawn
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._times = np.zeros(vocab_size, np.float32)
        if sampling.repetition_penalty != 1:
            self._there = np.zeros(vocab_size, bool)
            self._there[np.fromiter(prompt, np.int64)] = True
        self._biases = [np.fromiter(part, kind) for part, kind in
                        ((sampling.logit_bias.keys(), np.int64), (sampling.logit_bias.values(), np.float32))]
        self._plain = self._times is None and self._there is None and not sampling.logit_bias and matcher is None
        self.likeliest = self._plain and sampling.temperature == 0  # whatever else the logits say

    def draw(self, logits: np.ndarray) -> int:
        """The next token. logits: float32 [vocabulary], left as they are.

        Raises:
            BadInput: logits that are no numbers, or a grammar that nothing can follow.
        """
        scores = logits if self._plain else self._adjusted(logits.copy())
        token = int(scores.argmax())
        if not np.isfinite(scores[token]):
            raise BadInput("the model gives no finite logits" if self._plain else "no token is allowed here",
                           where=None if self._matcher is None else FIELD)
        if self.sampling.temperature > 0:
            token = self._sampled(scores, float(scores[token]))
        if self._times is not None:
            self._times[token] += 1
        if self._there is not None:
            self._there[token] = True
        if self._matcher is not None:
            self._matcher.take(token)
        return token

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of these, from the first on, the grammar allows to come next, if there is one."""
        return len(tokens) if self._matcher is None else self._matcher.allowed(tokens)

    @property
    def complete(self) -> bool:
        """Whether the grammar, if there is one, allows nothing more."""
        return self._matcher is not None and self._matcher.complete

    def _adjusted(self, scores: np.ndarray) -> np.ndarray:
        asked = self.sampling
        if self._there is not None:
            seen = scores[self._there]
            scores[self._there] = np.where(seen > 0, seen / asked.repetition_penalty, seen * asked.repetition_penalty)
        if self._times is not None:
            scores -= asked.frequency_penalty * self._times + asked.presence_penalty * (self._times > 0)
        scores[self._biases[0]] += self._biases[1]
        if self._matcher is not None:
            self._matcher.forbid(scores)
        return scores

    def _sampled(self, scores: np.ndarray, highest: float) -> int:
        asked = self.sampling
        scaled = (scores - highest) / asked.temperature  # a lower temperature cannot overflow
        lowest = np.log(asked.min_p) if asked.min_p > 0 else np.finfo(np.float32).min  # not -inf: these are forbidden
        kept = np.flatnonzero(scaled >= lowest)
        if 0 < asked.top_k < len(kept):
            kept = kept[np.argpartition(scaled[kept], -asked.top_k)[-asked.top_k :]]
        weights = np.exp(scaled[kept], dtype=np.float64)
        if asked.top_p < 1:
            likely = weights * len(weights) >= (1 - asked.top_p) * weights.sum()  # all others together are too few
            total, kept, weights = weights.sum(), kept[likely], weights[likely]
            order = np.argsort(-weights, kind="stable")
            count = int(np.searchsorted(np.cumsum(weights[order]), asked.top_p * total)) + 1
            kept, weights = kept[order[:count]], weights[order[:count]]
        sums = np.cumsum(weights)
        return int(kept[min(int(np.searchsorted(sums, self._random.random() * sums[-1], "right")), len(sums) - 1)])


def logprob_of(logits: np.ndarray, token: int, count: int) -> TokenLogprob:
    """The logarithm of a token's probability, and the `count` likeliest ones; logits: float32 [vocabulary]."""
    highest = logits.max()
    total = float(highest) + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
    best = np.argpartition(logits, -count)[-count:] if count else np.empty(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    return TokenLogprob(token, float(logits[token]) - total, tuple((int(i), float(logits[i]) - total) for i in best))
