"""A model's tokenizer and chat template together, read from its folder without transformers."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from phicli.text.encoded import Encoded
from phicli.text.foreign import Alphabet
from phicli.text.layout import ChatLayout, Message
from phicli.text.template import TextTemplate
from phicli.text.tokens import Tokens


class TextCodec:
    """Text to ids and back.

    Raises:
        BadInput: no `tokenizer.json`, or a damaged one.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.tokens = Tokens(self.folder / "tokenizer.json")

    @property
    def tokenizer(self) -> Any:
        """As the model's folder has it; for what is not text of others."""
        return self.tokens.decoder

    @property
    def special(self) -> dict[str, tuple[int, Any]]:
        """Control tokens: their ids and the tokenizer's own descriptions."""
        return self.tokens.special

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it is special and nothing is added.

        Raises:
            BadInput: half of a character in the text, or a tokenizer that cannot encode it.
        """
        return self.tokens.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        kept = [ident for ident in ids if ident not in self.tokens.silent]
        return self.tokens.run("the tokenizer cannot decode",
                               lambda: self.tokens.decoder.decode(kept, skip_special_tokens=False))

    def stream(self) -> "TokenStream":
        """Decodes token by token, giving text as soon as it is whole characters."""
        return TokenStream(self.tokens)

    def encode_row(self, template: TextTemplate, row: Mapping[str, str]) -> Encoded:
        """Ids of a row under a text template, counted from its last field on. Raises as `encode_text`."""
        text, response_at = "", 0
        for piece, foreign in template.pieces(row):
            if foreign:
                response_at = len(text)
            text += piece if foreign else self.tokens.aliased(piece)
        encoding = self.tokens.encode(text)
        first = next((i for i, (start, _) in enumerate(encoding.offsets) if start >= response_at), len(encoding))
        return Encoded.counted_from(self.tokens.ids(encoding), first)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, laid out by the model's own chat template.

        Raises:
            BadInput: the model has no chat template, or the template refuses the messages.
        """
        plain = self.render_chat(messages, add_generation_prompt=add_generation_prompt)
        text, alphabet = self._layout.foreign(messages, add_generation_prompt)
        control = self.tokens.pattern
        if alphabet.show(text) != plain and control.findall(text) == control.findall(plain):
            text, alphabet = plain, Alphabet()  # a template that traced text does not follow, and no foreign marks
        pieces, at = [], 0
        for match in control.finditer(text):
            pieces += [alphabet.show(text[at : match.start()]), self.tokens.aliased(match[0])]
            at = match.end()
        return self.tokens.ids(self.tokens.encode("".join(pieces) + alphabet.show(text[at:])))

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text. Raises as `encode_chat`."""
        return self._layout.render(messages, add_generation_prompt)

    @cached_property
    def _layout(self) -> ChatLayout:
        return ChatLayout(self.folder)


class TokenStream:
    """Text of tokens as they come; the bytes of a character that is not whole yet are held back."""

    def __init__(self, tokens: Tokens):
        from tokenizers.decoders import DecodeStream

        self._tokens = tokens
        self._stream = DecodeStream(skip_special_tokens=False)

    def step(self, token: int) -> str:
        if token in self._tokens.silent:
            return ""
        return self._tokens.run("the tokenizer cannot decode",
                                lambda: self._stream.step(self._tokens.decoder, int(token))) or ""
