"""A tokenizer in which only what phicli puts there becomes a control token.

A token that was added to a tokenizer is a control token if it is marked special, or if it holds anything but letters,
digits, combining marks and blanks: `<|end|>`, `</s>`, `<think>`, `[INST]`. All others are pieces of ordinary text,
such as runs of spaces (Phi-2) or a word, and stay what they are.

Control tokens are not looked for in a text at all. Where one is meant an alias stands: random characters that nobody
can type, added to the tokenizer in its place.
"""

import json
import re
import secrets
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from phicli.artifacts.reading import parse_json, read_text
from phicli.errors import BadInput
from phicli.text.bounds import check_maps, check_rules

Result = TypeVar("Result")


class Tokens:
    """The tokenizer in a tokenizer.json.

    decoder: as the file has it. encoder: the same, but blind to control tokens; usually one object.
    special: control token -> (its id, the tokenizer's own AddedToken). pattern: finds them.
    silent: ids that are left out of decoded text. real: id of an alias -> id of its token.
    begin: ids that the tokenizer puts before a text, such as that of <s>. byte_level: its pieces are written as
    byte-level BPE writes bytes.

    Raises:
        BadInput: none there, or a damaged one.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            content = read_text(path)
        except FileNotFoundError:
            raise BadInput("no tokenizer.json", where=path.parent) from None
        self.decoder = self._load(content)
        added = self.decoder.get_added_tokens_decoder()
        self.silent = {ident for ident, token in added.items() if token.special}
        self.special = {token.content: (ident, token) for ident, token in added.items() if is_control(token)}
        longest_first = sorted(self.special, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.encoder = self._blind(self.decoder, longest_first)
        if self._reaches(longest_first):
            self.encoder = self._blind(self._load(_renamed(content, path, self.special)), [])
        self.real: dict[int, int] = {}
        self._aliases: dict[str, str] = {}

    def aliased(self, text: str) -> str:
        """Text of a template's own, with an alias in the place of each control token."""
        return self.pattern.sub(lambda match: self._alias(match[0]), text)

    def run(self, what: str, call: Callable[[], Result]) -> Result:
        """What `call` returns; errors and panics of the tokenizer's, which are no Exception, become BadInput."""
        try:
            return call()
        except BadInput:
            raise
        except TypeError:
            raise BadInput("the text has half of a character in it (a lone surrogate)") from None
        except BaseException as e:
            if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
                raise
            raise BadInput(f"{what}: {e}", where=self.path) from None

    def encode(self, text: str) -> Any:
        """The tokenizer's Encoding of a text with aliases. Raises BadInput: half of a character, or it fails."""
        return self.run("the tokenizer cannot encode a text",
                        lambda: self.encoder.encode(text, add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str]) -> list[Any]:
        """As `encode`, of many texts at once."""
        return self.run("the tokenizer cannot encode a text",
                        lambda: self.encoder.encode_batch(texts, add_special_tokens=False))

    def ids(self, encoding: Any) -> list[int]:
        """An encoding's ids, with those of the tokens that aliases stand for."""
        real = self.real
        return [real.get(ident, ident) for ident in encoding.ids] if real else encoding.ids

    def _load(self, content: str) -> Any:
        from tokenizers import Tokenizer, processors

        def load() -> Any:
            check_maps(content, self.path)
            found = Tokenizer.from_str(content)
            check_rules(found, self.path)
            found.no_truncation()
            found.no_padding()
            self.begin = _added_before(found)
            self.byte_level = found.decoder is not None and b"ByteLevel" in found.decoder.__getstate__()
            trims = found.post_processor is not None and b"ByteLevel" in found.post_processor.__getstate__()
            found.post_processor = processors.ByteLevel() if trims else None  # others only add what is not wanted
            return found

        return self.run("damaged tokenizer", load)

    def _blind(self, tokenizer: Any, names: Sequence[str]) -> Any:
        """The tokenizer, looking for none of these tokens nor for any that it takes for special."""
        from tokenizers import AddedToken

        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _reaches(self, names: Sequence[str]) -> bool:
        """Whether the model's own vocabulary may make a control token of its characters, as Unigram ones do."""
        controls = {ident for ident, _ in self.special.values()}
        tried = [*names, *(f"a {name}a" for name in names)]
        try:
            return any(not controls.isdisjoint(encoding.ids) for encoding in self.encode_batch(tried))
        except BadInput:  # a vocabulary without the characters of its own tokens
            return True

    def _alias(self, name: str) -> str:
        from tokenizers import AddedToken

        if name not in self._aliases:
            ident, token = self.special[name]
            alias = f"\ue000{secrets.token_hex(8)}\ue001"
            self.encoder.add_tokens([AddedToken(alias, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)])
            self.real[self.encoder.token_to_id(alias)] = ident
            self._aliases[name] = alias
        return self._aliases[name]


def _added_before(tokenizer: Any) -> list[int]:
    added, bare = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    at = next((at for at in range(len(added)) if added[at : at + len(bare)] == bare), 0)
    return added[:at]


def is_control(token: Any) -> bool:
    """Whether an added token is one that text must not become, see this module's docstring."""
    return token.special or not all(c.isspace() or c == "▁" or unicodedata.category(c)[0] in "LMN"
                                    for c in token.content)


def _renamed(content: str, path: Path, names: Any) -> str:
    """The same tokenizer.json with control tokens under names that nobody can type; ids stay.

    Raises:
        BadInput: it is no tokenizer.json that means one thing only.
    """
    document = parse_json(content, path)
    model, new = document["model"], {name: f"\ue000{secrets.token_hex(8)}\ue001" for name in names}
    vocab = model["vocab"]
    model["vocab"] = ({new.get(piece, piece): ident for piece, ident in vocab.items()} if isinstance(vocab, dict)
                      else [[new.get(piece, piece), score] for piece, score in vocab])
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if new.keys().isdisjoint([*pair, "".join(pair)])]
    if model.get("unk_token") in new:
        model["unk_token"] = new[model["unk_token"]]
    for token in document["added_tokens"]:
        token["content"] = new.get(token["content"], token["content"])
    return json.dumps(document)
