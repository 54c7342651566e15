"""`/tokenize` and `/detokenize`, as vLLM has them: what a prompt is in tokens, without an answer."""

from typing import Any

from phicli.serving.bodies import Body
from phicli.serving.faults import Fault
from phicli.serving.job import Asked, Chat, chat_job
from phicli.serving.service import Service
from phicli.text.pieces import token_bytes


class TokenizeBody(Body):
    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None

    def document(self, service: Service) -> dict[str, Any]:
        """Raises as `chat_job`."""
        codec = service.engine.codec_of(service.models.adapter_of(self.model))
        if (self.prompt is None) == (self.messages is None):
            raise Fault(400, "needs a prompt or messages", param="prompt")
        if self.prompt is not None:
            ids = [*codec.tokens.begin, *codec.encode_text(self.prompt)]
        else:
            chat = Chat(self.messages or [], self.tools, template_kwargs=self.chat_template_kwargs)
            ids = list(chat_job(service, Asked(self.model, {}), chat).requests[0].ids)
        words = [token_bytes(codec.tokens, ident).decode(errors="replace") for ident in ids]
        return {"count": len(ids), "max_model_len": service.engine.context, "tokens": ids,
                "token_strs": words if self.return_token_strs else None}


class DetokenizeBody(Body):
    model: str | None = None
    tokens: list[int]

    def document(self, service: Service) -> dict[str, Any]:
        """Raises Fault: 400, a token that there is not."""
        codec = service.engine.codec_of(service.models.adapter_of(self.model))
        if not all(0 <= ident < service.engine.vocab_size for ident in self.tokens):
            raise Fault(400, f"a token that is none of the vocabulary's {service.engine.vocab_size}", param="tokens")
        return {"prompt": codec.decode(self.tokens)}
