"""Foreign text that stays recognisable, character by character, whatever a chat template does with it.

Each character of foreign text gets a stand-in from Unicode's private use. What the template puts out is then its own
where it has ordinary characters, and foreign where it has stand-ins. Where a template looks at a text (`split`,
`strip`, `in`, `==`), it must see what stands there: that is what `Traced` is for.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from phicli.errors import BadInput

PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Alphabet:
    """Stand-ins, one for each character that is met, and others for each owner's.

    Args:
        own: text whose private-use characters are no stand-ins.
    """

    def __init__(self, own: str = ""):
        self._free, self._used = _free(own), 0
        self._hidden: dict[int, dict[int, str]] = {}
        self.shown: dict[int, str] = {}
        self.owners: dict[str, int] = {}
        self.marks = self._take(1), self._take(1)  # around what a template says that a model says
        self.shown |= dict.fromkeys(map(ord, self.marks), "")

    def hide(self, text: str, owner: int = 0) -> str:
        """The text in stand-ins. Raises BadInput: it has more characters than Unicode has for private use."""
        hidden = self._hidden.setdefault(owner, {})
        new = [c for c in set(text) if ord(c) not in hidden]
        if new:
            stand_ins = self._take(len(new))
            hidden.update(zip(map(ord, new), stand_ins, strict=True))
            self.shown.update(zip(map(ord, stand_ins), new, strict=True))
            self.owners.update(dict.fromkeys(stand_ins, owner))
        return text.translate(hidden)

    def hide_all(self, value: Any, owner: int = 0) -> Any:
        """Lists and objects with every text in them, names too, as one that a template may look at."""
        if isinstance(value, str):
            return self.trace(self.hide(value, owner))
        if isinstance(value, dict):
            return {self.hide_all(k, owner): self.hide_all(v, owner) for k, v in value.items()}
        return [self.hide_all(part, owner) for part in value] if isinstance(value, list | tuple) else value

    def _take(self, count: int) -> str:
        begin, self._used = self._used, self._used + count
        if self._used > len(self._free):
            raise BadInput("a text with more different characters than can be told apart")
        return self._free[begin : self._used]

    def show(self, text: str) -> str:
        """The text with every stand-in as what it stands for."""
        return text.translate(self.shown)

    def trace(self, text: str) -> str:
        """The text, as one that a template may look at."""
        return Traced(text, self) if not text.isascii() and self.owners else text

    def in_json(self, document: str, ascii_only: bool = False) -> str:
        """A JSON document in whose strings foreign quotes, backslashes and control characters are escaped."""
        escapes = {c: _escaped(c) for c in self.shown.values()
                   if c and (c in '"\\' or c < " " or (ascii_only and c > "~"))}
        if ascii_only:
            document = "".join(_escaped(c) if c > "~" and ord(c) not in self.shown else c for c in document)
        return document.translate({h: self.hide(escapes[c], self.owners[chr(h)])
                                   for h, c in list(self.shown.items()) if c in escapes})


@lru_cache(maxsize=4)
def _free(own: str) -> str:
    """All characters for private use that are not in a text."""
    used = set(own)
    return "".join(c for span in PRIVATE for c in map(chr, span) if c not in used)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


class Traced(str):
    """A text with stand-ins in it, which answers as if the characters themselves stood there.

    What it gives back has stand-ins at the same places. Joined, formatted or printed it is the text with stand-ins.
    """

    _alphabet: Alphabet
    _seen: str | None = None

    def __new__(cls, text: str, alphabet: Alphabet) -> "Traced":
        made = super().__new__(cls, text)
        made._alphabet = alphabet
        return made

    @property
    def _shown(self) -> str:
        if self._seen is None:
            self._seen = self._alphabet.show(self)
        return self._seen

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return f"'{str.__str__(self)}'"

    def __hash__(self) -> int:
        return hash(self._shown)

    def __getitem__(self, index: Any) -> "Traced":
        return Traced(super().__getitem__(index), self._alphabet)

    def __iter__(self) -> Iterator["Traced"]:
        return (Traced(c, self._alphabet) for c in super().__iter__())

    def lstrip(self, chars: str | None = None, /) -> "Traced":
        return self[len(self) - len(self._shown.lstrip(_plain(chars))) :]

    def rstrip(self, chars: str | None = None, /) -> "Traced":
        return self[: len(self._shown.rstrip(_plain(chars)))]

    def strip(self, chars: str | None = None, /) -> "Traced":
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> "Traced":
        return self[len(self) - len(self._shown.removeprefix(_plain(prefix))) :]

    def removesuffix(self, suffix: str, /) -> "Traced":
        return self[: len(self._shown.removesuffix(_plain(suffix)))]

    def split(self, sep: str | None = None, maxsplit: int = -1) -> list["Traced"]:  # type: ignore[override]
        return self._at(self._shown.split(_plain(sep), maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> list["Traced"]:  # type: ignore[override]
        return self._at(self._shown.rsplit(_plain(sep), maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list["Traced"]:  # type: ignore[override]
        return self._at(self._shown.splitlines(keepends), 0)

    def partition(self, sep: str, /) -> tuple["Traced", ...]:  # type: ignore[override]
        return tuple(self._at(self._shown.partition(_plain(sep)), 0))

    def rpartition(self, sep: str, /) -> tuple["Traced", ...]:  # type: ignore[override]
        return tuple(self._at(self._shown.rpartition(_plain(sep)), 0))

    def replace(self, old: str, new: str, count: int = -1, /) -> "Traced":  # type: ignore[override]
        parts = self.split(old, count) if old else [self[:0], *self, self[:0]]
        return Traced(str.join(new, parts), self._alphabet)

    def _at(self, parts: Sequence[str], step: int) -> list["Traced"]:
        """The parts as they stand here, each behind the other and `step` characters between them, or blanks."""
        found, at = [], 0
        for part in parts:
            at = self._shown.index(part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + step
        return found

    def _changed(self, change: Callable[[str], str]) -> "Traced":
        """Another case of the text, where foreign characters give foreign ones."""
        whole: Iterable[str] = change(self._shown)
        if len(change(self._shown)) != len(self):
            whole = map(change, self._shown)
        pairs = zip(super().__iter__(), whole, strict=True)
        owners = self._alphabet.owners
        hidden = (self._alphabet.hide(c, owners[h]) if h in owners else c for h, c in pairs)
        return Traced("".join(hidden), self._alphabet)


def _plain(value: Any) -> Any:
    """A traced text, or those of a tuple, as what stands there."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value._shown if isinstance(value, Traced) else value


def _looking(name: str) -> Callable[..., Any]:
    method = getattr(str, name)
    return lambda self, *given: method(self._shown, *map(_plain, given))


def _changing(name: str) -> Callable[[Traced], Traced]:
    method = getattr(str, name)
    return lambda self: self._changed(method)


for _name in ("startswith", "endswith", "find", "rfind", "index", "rindex", "count", "isalnum", "isalpha", "isascii",
              "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
              "isupper", "__contains__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
    setattr(Traced, _name, _looking(_name))
for _name in ("lower", "upper", "casefold", "swapcase", "title", "capitalize"):
    setattr(Traced, _name, _changing(_name))
