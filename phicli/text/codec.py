"""A model's tokenizer and chat template together, read from its folder without transformers."""

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from phicli.errors import BadInput
from phicli.text.conversation import Conversation
from phicli.text.encoded import Encoded
from phicli.text.foreign import Alphabet
from phicli.text.layout import USER, ChatLayout, Message, ends_said, special_names
from phicli.text.template import TextTemplate
from phicli.text.tokens import Tokens
from phicli.text.turns import Span, Turns, marked


class TextCodec:
    """Text to ids and back.

    Args:
        template: a chat template in place of the folder's. options: further variables of it, such as enable_thinking.

    Raises:
        BadInput: no `tokenizer.json`, or a damaged one.
    """

    def __init__(self, folder: Path, template: str | None = None, options: Mapping[str, Any] | None = None):
        self.folder, self._template, self._template_options = Path(folder), template, options
        self.tokens = Tokens(self.folder / "tokenizer.json")

    def under(self, template: str) -> "TextCodec":
        """The same tokenizer under another chat template."""
        other = copy(self)
        other._template = template
        for name in ("layout", "turns", "begin_of_chat"):  # what was found by this one's
            other.__dict__.pop(name, None)
        return other

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
        """Ids of a row under a text template, counted from its last field on; it begins as chat does.

        Raises as `encode_text`.
        """
        text, response_at = "", 0
        for piece, foreign in template.pieces(row):
            if foreign:
                response_at = len(text)
            text += piece if foreign else self.tokens.aliased(piece)
        encoding = self.tokens.encode(text)
        first = next((i for i, (start, _) in enumerate(encoding.offsets) if start >= response_at), len(encoding))
        ids, begin = self.tokens.ids(encoding), self.begin_of_chat
        begin = [] if ids[: len(begin)] == begin else begin
        return Encoded.counted_from([*begin, *ids], len(begin) + first)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True,
                    tools: Sequence[Any] | None = None, options: Mapping[str, Any] | None = None) -> list[int]:
        """Ids of a conversation, laid out by the model's own chat template.

        options: variables of the template for this conversation, over those of the codec.

        Raises:
            BadInput: the model has no chat template, or the template refuses the messages.
        """
        text, alphabet = self._laid_out(messages, add_generation_prompt, tools, options)
        shown, _ = self._with_aliases(text, alphabet, [])
        return self.tokens.ids(self.tokens.encode(shown))

    def encode_conversation(self, conversation: Conversation) -> Encoded:
        """Ids of a conversation as `encode_chat` gives them; what the model says counts, with the end of its turn.

        Raises:
            BadInput: as `encode_chat`, or the template hides what is the model's.
        """
        text, alphabet = self._laid_out(conversation.messages, False, conversation.tools)
        spans = self.turns.spans(conversation, text, alphabet)
        shown, spans = self._with_aliases(text, alphabet, spans)
        encoding = self.tokens.encode(shown)
        return Encoded(self.tokens.ids(encoding), marked(encoding.offsets, spans))

    def encode_document(self, text: str) -> Encoded:
        """Ids of plain text between the tokens that a text of this model begins and ends with; all of it counts."""
        ids = [*self.tokens.begin, *self.encode_text(text), *self.end_of_text]
        return Encoded(ids, [True] * len(ids))

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True,
                    tools: Sequence[Any] | None = None) -> str:
        """The conversation as text. Raises as `encode_chat`."""
        return self.layout.render(messages, add_generation_prompt, tools=tools)

    @cached_property
    def layout(self) -> ChatLayout:
        """The chat template. Raises BadInput: there is none, or it cannot be read."""
        return ChatLayout(self.folder, self._template, self._template_options)

    @cached_property
    def turns(self) -> Turns:
        """Where turns begin and end. Raises as `layout`."""
        return Turns(self.layout, self.tokens.pattern)

    @cached_property
    def begin_of_chat(self) -> list[int]:
        """What the tokenizer puts before a text, if the chat template puts it there too, or if there is none."""
        begin = self.tokens.begin
        try:
            return begin if begin == self.encode_chat([{"role": USER, "content": "a"}])[: len(begin)] else []
        except BadInput:
            return begin

    @cached_property
    def end_of_text(self) -> list[int]:
        """The token that ends a text: by the tokenizer's settings, or else the first that the model's name."""
        found, said = special_names(self.folder).get("eos_token"), ends_said(self.folder)
        ident = self.tokens.decoder.token_to_id(found) if found else said[0] if said else None
        return [] if ident is None or self.tokens.decoder.id_to_token(ident) is None else [ident]

    def _laid_out(self, messages: Sequence[Message], add_generation_prompt: bool,
                  tools: Sequence[Any] | None, options: Mapping[str, Any] | None = None) -> tuple[str, Alphabet]:
        plain = self.layout.render(messages, add_generation_prompt, tools=tools, options=options)
        text, alphabet = self.layout.foreign(messages, add_generation_prompt, tools, options)
        control = self.tokens.pattern
        if alphabet.show(text) != plain and control.findall(text) == control.findall(plain):
            return plain, Alphabet()  # a template that traced text does not follow, and no foreign marks
        return text, alphabet

    def _with_aliases(self, text: str, alphabet: Alphabet, spans: Sequence[Span]) -> tuple[str, list[Span]]:
        """What is to be encoded of a text in stand-ins, and where its spans are in that."""
        pieces, edges, at, length = list[str](), dict[int, int](), 0, 0
        wanted = sorted({edge for span in spans for edge in span})
        for match in [*self.tokens.pattern.finditer(text), None]:
            begin, end = match.span() if match else (len(text), len(text))
            while wanted and wanted[0] <= begin:
                edge = wanted.pop(0)
                edges[edge] = length + len(alphabet.show(text[at:edge]))
            pieces += [alphabet.show(text[at:begin]), self.tokens.aliased(text[begin:end])]
            length, at = length + len(pieces[-2]) + len(pieces[-1]), end
        return "".join(pieces), [(edges[begin], edges[end]) for begin, end in spans]


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
