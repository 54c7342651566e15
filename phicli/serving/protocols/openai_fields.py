"""What OpenAI's protocols have in common, with the further fields that vLLM's clients know."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from phicli.inference.engine import TokenLogprob
from phicli.serving.bodies import Body
from phicli.serving.choices import Usage
from phicli.serving.faults import Fault
from phicli.serving.job import Asked
from phicli.text import TextCodec
from phicli.text.pieces import token_bytes

DRAWING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
           "seed")


# vLLM's, llama.cpp's and ollama's ways to say what form an answer has, and where it ends
FORMS = ("guided_json", "guided_choice", "guided_regex", "guided_grammar", "structured_outputs", "grammar",
         "json_schema", "format")
INSTEAD: dict[str, str | None] = {**dict.fromkeys(FORMS, "response_format of /v1/chat/completions"),
                                  "stop_token_ids": "stop", "min_tokens": "ignore_eos", "bad_words": "logit_bias",
                                  "allowed_token_ids": "logit_bias", "use_beam_search": None, "prompt_logprobs": None}


class StreamOptions(Body):
    include_usage: bool | None = None


class Drawn(Body):
    """How tokens are drawn, and what else both old protocols have.

    n_predict, repeat_penalty: llama.cpp's names of max_tokens, -1 for no limit, and of repetition_penalty.
    """

    instead: ClassVar[Mapping[str, str | None]] = INSTEAD

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    n_predict: Literal[-1] | Annotated[int, Field(ge=1)] | None = None
    repeat_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)

    def model_post_init(self, context: Any) -> None:
        if self.max_tokens is None and self.n_predict != -1:
            self.max_tokens = self.n_predict
        if self.repetition_penalty is None:
            self.repetition_penalty = self.repeat_penalty

    def asked(self, logprobs: int | None) -> Asked:
        """Raises Fault: 400, a bias that is not of a token."""
        drawing = {name: getattr(self, name) for name in DRAWING}
        if self.logit_bias:
            try:
                drawing["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
            except ValueError:
                raise Fault(400, "logit_bias: its keys are the numbers of tokens", param="logit_bias") from None
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Asked(self.model, drawing, self.max_tokens, stops, 1 if self.n is None else self.n, logprobs,
                     bool(self.ignore_eos), bool(self.stream),
                     bool(self.stream_options and self.stream_options.include_usage))


def usage_of(usage: Usage) -> dict[str, Any]:
    return {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion,
            "total_tokens": usage.prompt + usage.completion,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
            "completion_tokens_details": {"accepted_prediction_tokens": usage.accepted,
                                          "rejected_prediction_tokens": usage.rejected}}


def logprob_of(codec: TextCodec, found: TokenLogprob) -> dict[str, Any]:
    """A token's logarithm of its probability, beside those of the likeliest ones."""
    return {**_one(codec, found.id, found.logprob),
            "top_logprobs": [_one(codec, ident, value) for ident, value in found.top]}


def _one(codec: TextCodec, ident: int, value: float) -> dict[str, Any]:
    content = token_bytes(codec.tokens, ident)
    return {"token": content.decode(errors="replace"), "logprob": value, "bytes": list(content)}
