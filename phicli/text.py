"""Text to tokens and back. What a user typed or a row holds is text: it never becomes a special token.

A special token of the template (`<|user|>`) is one; the same characters inside a message or a field are ordinary
text. To tell them apart, the first character of each special token in foreign text is disguised before the template is
filled in, so that only the template's own are found afterwards, and shown again before the text between is encoded.
"""

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from phicli.errors import BadInput

PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Encoded:
    """Token ids, and where the last field of the template (the response) begins among them."""

    ids: list[int]
    response_start: int


class TextTemplate:
    """A template such as "<|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}<|end|>".

    `{name}` takes a row's field; `{{` and `}}` are braces; `\\n`, as a shell passes it, is a new line.

    Raises:
        BadInput: no field in it, or not a valid template.
    """

    def __init__(self, template: str):
        template = template.replace("\\n", "\n")
        try:
            template.encode("utf-8")  # half of a character is no text
            parts = list(string.Formatter().parse(template))
        except ValueError as e:
            raise BadInput(f"text template: {e}", where=repr(template)) from None
        self.parts = [(literal, name) for literal, name, _, _ in parts]
        self.fields = [name for _, name in self.parts if name is not None]
        wrong = [n for n, (_, name, spec, conversion) in enumerate(parts)
                 if name is not None and (not name.isidentifier() or spec or conversion)]
        if wrong or not self.fields:
            raise BadInput("text template needs fields like {prompt}", where=repr(template))
        self.template = template

    def pieces(self, row: Mapping[str, Any]) -> list[tuple[str, bool]]:
        """The row's text as (text, is it foreign) pieces; the last foreign piece is the response."""
        out: list[tuple[str, bool]] = []
        for literal, name in self.parts:
            out.append((literal, False))
            if name is not None:
                out.append((row[name], True))
        return [piece for piece in out if piece[0] or piece[1]]


class TextCodec:
    """A model's tokenizer and chat template, read from its folder without transformers.

    Raises:
        BadInput: no `tokenizer.json`, or a damaged one.
    """

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        self.folder = Path(folder)
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise BadInput("no tokenizer.json", where=self.folder)
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as e:
            raise BadInput(f"damaged tokenizer: {e}", where=path) from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # text is text; the template's tokens are put in by hand
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {token.content: (ident, token) for ident, token in added.items()}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._special_re = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._longest = len(longest_first[0]) if longest_first else 0

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it is special and nothing is added. Raises BadInput as `_encode`."""
        return self._encode(text).ids

    def _encode(self, text: str) -> Any:
        """Raises BadInput: half of a character in the text, or a tokenizer that cannot encode it."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=False)
        except TypeError:
            raise BadInput("the text has half of a character in it (a lone surrogate)") from None
        except Exception as e:
            raise BadInput(f"the tokenizer cannot encode a text: {e}", where=self.folder) from None

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> "TokenStream":
        """Decodes token by token, giving text as soon as it is whole characters."""
        return TokenStream(self.tokenizer)

    def encode_row(self, template: TextTemplate, row: Mapping[str, str]) -> Encoded:
        """Ids of a row under a text template."""
        return self._encode_pieces(template.pieces(row))

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, laid out by the model's own chat template.

        Raises:
            BadInput: the model has no chat template, or the template refuses the messages.
        """
        disguise = Disguise(m["content"] for m in messages)
        hidden = [{**m, "content": self._hide(m["content"], disguise)} for m in messages]
        text = self.render_chat(hidden, add_generation_prompt=add_generation_prompt)
        return self._encode_hidden(text, disguise)[0]

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text."""
        try:
            return self._chat_template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self._token_names
            )
        except BadInput:
            raise
        except Exception as e:  # a template can fail in any way that Python can
            raise BadInput(f"chat template: {e}", where=self.folder) from None

    def _encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> Encoded:
        disguise = Disguise(text for text, _ in pieces)
        text, response_at, was_foreign = "", 0, False
        for piece, foreign in pieces:
            if foreign:
                response_at = len(text)
            hidden = self._hide(piece, disguise) if foreign else piece
            if self._joins(text, hidden):
                if foreign:
                    hidden = disguise.hide(hidden[0]) + hidden[1:]
                elif was_foreign:
                    text = text[:-1] + disguise.hide(text[-1])
            text += hidden
            was_foreign = foreign or (was_foreign and not piece)
        ids, starts = self._encode_hidden(text, disguise)
        first = next((i for i, start in enumerate(starts) if start >= response_at), len(ids))
        return Encoded(ids, first)

    def _hide(self, text: str, disguise: "Disguise") -> str:
        """Disguise the first character of each special token, so that it is found no more."""
        while self._special_re.search(text):  # one may stand inside another
            text = self._special_re.sub(lambda m: disguise.hide(m[0][0]) + m[0][1:], text)
        return text

    def _joins(self, before: str, after: str) -> bool:
        """Whether a special token would come about where two texts meet, such as "<|" and "user|>"."""
        around = before[1 - self._longest :] if self._longest > 1 else ""
        joined = around + after[: self._longest]
        found = (self._special_re.match(joined, at) for at in range(len(around)))
        return any(match and match.end() > len(around) for match in found)

    def _encode_hidden(self, text: str, disguise: "Disguise") -> tuple[list[int], list[int]]:
        """Ids, and for each the position in `text` where it begins."""
        ids: list[int] = []
        starts: list[int] = []
        at = 0
        strip_left = False
        for match in [*self._special_re.finditer(text), None]:
            piece = text[at : match.start() if match else len(text)]
            ident, token = self.special[match[0]] if match else (None, None)
            kept = piece.lstrip() if strip_left else piece
            offset = at + len(piece) - len(kept)
            if token is not None and token.lstrip:
                kept = kept.rstrip()
            if kept:
                encoding = self._encode(disguise.show(kept))
                ids += encoding.ids
                starts += [offset + a for a, _ in encoding.offsets]
            if match and ident is not None and token is not None:
                ids.append(ident)
                starts.append(match.start())
                at, strip_left = match.end(), token.rstrip
        return ids, starts

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self.folder / "tokenizer_config.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as e:
            raise BadInput(f"damaged tokenizer settings: {e}", where=path) from None
        if not isinstance(found, dict):
            raise BadInput("damaged tokenizer settings: not a JSON object", where=path)
        return found

    @cached_property
    def _token_names(self) -> dict[str, str]:
        found = {}
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = self._config.get(name)
            found[name] = str((value.get("content") if isinstance(value, dict) else value) or "")
        return found

    @cached_property
    def _chat_template(self) -> Any:
        """Compiled in Jinja's sandbox, with what the templates on the Hugging Face hub rely on."""
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        source = self._chat_template_source()
        if not source:
            raise BadInput("the model has no chat template", where=self.folder)

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
        try:
            return environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as e:
            raise BadInput(f"chat template: {e}", where=self.folder) from None

    def _chat_template_source(self) -> str | None:
        path = self.folder / "chat_template.jinja"
        source = self._config.get("chat_template")
        try:
            if path.is_file():
                return path.read_text(encoding="utf-8")
            if isinstance(source, list):  # several named templates
                source = next((t["template"] for t in source if t.get("name") == "default"), None)
        except (OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as e:
            raise BadInput(f"damaged chat template: {e}", where=self.folder) from None
        return source if isinstance(source, str) else None


class TokenStream:
    """Text of tokens as they come; the bytes of a character that is not whole yet are held back."""

    def __init__(self, tokenizer: Any):
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token: int) -> str:
        return self._stream.step(self._tokenizer, int(token)) or ""


class Disguise:
    """Characters in the place of others, one for one: private-use ones that occur in none of the texts.

    Raises:
        BadInput: the texts have all of the private-use characters in them.
    """

    def __init__(self, texts: Iterable[str]):
        used = set().union(*map(set, texts))
        self._free = (c for span in PRIVATE for c in map(chr, span) if c not in used)
        self._hidden: dict[str, str] = {}
        self._shown: dict[int, str] = {}

    def hide(self, character: str) -> str:
        if character not in self._hidden:
            stand_in = next(self._free, None)
            if stand_in is None:
                raise BadInput("every private-use character of Unicode stands in this text")
            self._hidden[character] = stand_in
            self._shown[ord(stand_in)] = character
        return self._hidden[character]

    def show(self, text: str) -> str:
        return text.translate(self._shown) if self._shown else text
