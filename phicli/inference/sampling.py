"""How the next token is drawn from the model's logits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np

from phicli.config.commands import ChatConfig
from phicli.config.setting import checked
from phicli.errors import UsageError

MOST_BIASES = 1024  # tokens of `logit_bias`


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature 0 takes the likeliest one; top_p, top_k and min_p then have no effect.

    repetition_penalty: as transformers has it, a score of a token that was there, in the prompt too, is divided by it
    where it is above 0, else multiplied. top_k 0: all tokens. min_p: counts before top_k and top_p.

    In an engine only: presence_penalty is taken from the score of a token that was drawn before, frequency_penalty once
    for each time; logit_bias, by token id, is added to scores, -100 forbids and 100 forces.
    """

    temperature: float = 0.0
    top_p: float = 0.95
    top_k: int = 50
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Raise UsageError for a value that the settings of the same names would not take either."""
        for name in SETTINGS:
            if (value := getattr(self, name)) is None:
                raise UsageError("needs a number, not None", where=name)
            object.__setattr__(self, name, checked(ChatConfig, name, value))
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise UsageError("must be from -2 to 2", where=name)
        if len(self.logit_bias) > MOST_BIASES or not all(-100 <= bias <= 100 for bias in self.logit_bias.values()):
            raise UsageError(f"at most {MOST_BIASES} tokens, each with a bias from -100 to 100", where="logit_bias")

    @classmethod
    def asked_by(cls, search: Mapping[str, Any]) -> Self:
        """What a model asks for, by the search settings that `read_config` gives; where it is silent, phicli's own."""
        asked: dict[str, Any] = {"temperature": 0.7}
        if search.get("do_sample") or search.get("temperature") == 0:
            asked = {"temperature": 1.0, "top_p": 1.0}  # as transformers has them where they are left out
            asked |= {name: search[name] for name in ("temperature", "top_p", "top_k") if name in search}
        return cls(**asked, repetition_penalty=search.get("repetition_penalty", 1.0))

    def settled(self, config: ChatConfig, sample: bool) -> Self:
        """These values, where the settings do not give others. sample: False is greedy unless they give a temperature.
        """
        given = {name: value for name in SETTINGS if (value := getattr(config, name)) is not None}
        return replace(self, **({} if sample else {"temperature": 0.0}) | given)

    def search_options(self, vocab_size: int) -> dict[str, Any]:
        """What genai takes; `without_unlikely` does the rest."""
        options: dict[str, Any] = {"do_sample": self.temperature > 0, "repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return options
        return {**options, "temperature": self.temperature, "top_p": self.top_p, "top_k": min(self.top_k, vocab_size),
                "random_seed": self.seed}

    @property
    def in_engines_only(self) -> bool:
        """Whether there is something that genai cannot do."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)

    @property
    def filters(self) -> bool:
        """Whether `without_unlikely` leaves anything out."""
        return self.temperature > 0 and self.min_p > 0

    def without_unlikely(self, logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The logits, any shape with one row, -inf where a probability is below min_p times the largest.

        tokens: the whole sequence; genai applies the penalty only when it draws, so it is counted in here.
        """
        scores, kept, seen = logits.ravel().copy(), logits.copy(), np.unique(tokens)
        scores[seen] *= np.where(scores[seen] > 0, 1 / self.repetition_penalty, self.repetition_penalty)
        unlikely = scores < scores.max() + self.temperature * np.log(self.min_p)
        np.copyto(kept, -np.inf, where=unlikely.reshape(logits.shape))
        return kept

    def __str__(self) -> str:
        parts = ["greedy"] if self.temperature == 0 else [
            f"temperature {self.temperature:g}", f"top-p {self.top_p:g}", f"top-k {self.top_k}",
            *([f"min-p {self.min_p:g}"] if self.min_p else []), f"seed {self.seed}"]
        if self.repetition_penalty != 1:
            parts.append(f"repetition penalty {self.repetition_penalty:g}")
        return ", ".join(parts)


SETTINGS = tuple({f.name for f in fields(Sampling)} & {f.name for f in fields(ChatConfig)})
