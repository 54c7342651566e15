"""Text that looks damaged to a reader, though every character of it is sound: nothing of it can be repaired here.

Patterns are conservative: what is found is nearly always damage, and not all damage is found.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from phicli.dataset.text_repair import CODE

# Scripts that put a blank after punctuation: Latin, Greek, Cyrillic.
_L = "A-Za-zÀ-ÖØ-öø-ɏͰ-ϿЀ-ӿḀ-ỿ"
_WORD = f"[{_L}](?:[{_L}'’-]*[{_L}])?"
_CODE_LINE = re.compile(r"[{}=<>|\\_]|\w\(|://|\);")

_GLUED = re.compile(
    f"(?<!\\S)[\"'“‘*]*[{_L}-]*[{_L}]{{2}}(?:[,;!?]{_WORD}|(?<=[^\\WA-Z]{{2}})\\.(?:the|you|your|they|there|their|which))"
    r"[.,;:!?…\"'”’*]*(?!\S)"
)
# "time.The" as "asyncio.Queue": only where nothing else looks like a program.
_GLUED_SENTENCE = re.compile(f"(?<!\\S)[\"'“‘*]*[{_L}-]*[^\\WA-Z\\d]{{2}}\\.[A-ZÀ-ÞА-Я](?:[{_L}'’-]*[^\\WA-Z\\d])?"
                             r"[.,;:!?…\"'”’*]*(?!\S)")
_ABOUT_CODE = re.compile(r"[{}=<>|\\_`@#]|\w\(|::|->|://|[a-z][A-Z]|\b(?i:api|arrays?|dtype|functions?|import|java|javascript"
                         r"|librar(?:y|ies)|methods?|modules?|numpy|pyarrow|python)\b")

# Words that no sentence has twice in a row. Of others only long ones are taken, and only amid English: short ones are
# often meant ("very very", "pole pole" is Swahili).
_NEVER_TWICE = re.compile(
    "a|an|and|are|as|at|be|but|by|can|could|from|has|have|if|into|of|or|our|should|than|the|their|them|then|"
    "these|they|this|to|was|were|when|will|with|would|your|de|del|des|du|el|en|et|het|ein|eine|les|los|las|und|"
    "che|uma"
)
_LONG, _MEANT = 7, frozenset(("exactly", "quickly", "totally", "forever"))
_DOUBLED = re.compile(f"(?<![\\w'’./-])({_WORD}) ((?i:\\1))(?![\\w'’/-]|\\.\\w| (?i:\\1)\\b)")
_ENGLISH = re.compile(r"\b(?:the|and|of|is|to)\b")

_TAG = re.compile(
    r"</?(?:p|br|hr|li|[uo]l|t[rdh]|tbody|thead|h[1-6]|div|span|em|strong|su[bp]|blockquote)\s*/?>"
    r"|<(?:p|br|li|[uo]l|t[rdh]|h[1-6]|div|span|a|img|table|font|iframe|section|style|script|input|button|form)"
    r"\s+[a-z-]{2,30}\s*=[^<>\n]{0,500}>"
    r"|</(?:a|b|i|u|table|font|center|small|big|section|script|style|pre|button|form|label|figure)>|<!--",
    re.IGNORECASE,
)
_ABOUT_MARKUP = re.compile(r"(?<![./<])(?<!doctype )\bhtml\b|\b(?:css|xml|jsx|react|markdown)\b"
                           r"|\b(?:bbcode|wikitext|templates?)\b|> ?(?:tags?|elements?)\b", re.IGNORECASE)
_BBCODE = re.compile(r"\[/(?:b|i|u|url|img|quote|size|color|list|center|spoiler|youtube)\]"
                     r"|\[(?:url|quote|size|color)=[^\]\n]{1,300}\]", re.IGNORECASE)
_WIKI = re.compile(r"(?<![\w\])])\[\[[^\W\d][^\[\]\n=]{1,200}(?<! )\]\](?!\])"
                   r"|(?<![\w}\]^_\\{$%=(:])\{\{ ?[A-Za-z#][^{}\n]{1,300}\}\}(?!\})")

# What may stand at the end of a whole text; the last ones of the first line are Markdown's.
_FULL_STOPS = frozenset(".!?…。！？．؟۔।॥።։။")
_CLOSED = _FULL_STOPS | frozenset("\"'”’»«›)]}>*_`~|:｡」』）】》〉؛")
_STOP = re.compile(r"[.!?…][\"'”’»)\]*_]*\s+(?=\S)|[。！？؟۔।॥።։။][」』）”]*")
_FENCE = re.compile("^ *```", re.MULTILINE)
_LINE_END = re.compile(r"(\S)\s*$", re.MULTILINE)
_NO_BLANKS = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•–·|#>]|\(?\w{1,3}[.)]\s)")
_GOES_ON = re.compile(
    "a|an|and|the|of|to|in|for|with|from|by|at|as|or|but|if|than|that|which|who|whose|where|when|while|because|"
    "although|into|onto|is|are|was|were|be|been|has|have|had|can|could|will|would|should|may|might|must|my|your|"
    "his|its|our|their|this|these|those|such|including|both|either|between|und|oder|der|dem|den|ein|eine|einen|"
    "einem|einer|für|von|et|ou|le|la|les|de|du|des|un|une|avec|pour|el|los|las|y|del|con|para|una|il|di|della|"
    "dei|um|uma|com"
)
_TAIL = 4000  # characters of a text that are looked at

_TOGETHER = 200  # texts: few enough that memory is used again and not asked for anew
_PUNCTUATION, _LETTER, _OPENING = 1, 2, 3
_KIND = bytearray(256)
for _byte in (*range(0x41, 0x5B), *range(0x61, 0x7B), *range(0xC3, 0xE2)):  # the latter begin letters of these scripts
    _KIND[_byte] = _LETTER
for _byte in b".,;!?":
    _KIND[_byte] = _PUNCTUATION
for _byte in b"<[{":
    _KIND[_byte] = _OPENING
_BLANK = ord(" ")
_SMALL = bytes(byte if byte >= 0x80 or byte == ord("'") else ord(chr(byte).lower()) if chr(byte).isalpha() else _BLANK
               for byte in range(256))


def suspicions(texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index of the text, code of `findings.KINDS`) for glued_punctuation, doubled_word and markup.

    Most texts have none: a look at the bytes of many of them together says which are worth a regular expression.
    """
    for first in range(0, len(texts), _TOGETHER):
        yield from ((first + at, code) for at, code in _suspicions(texts[first: first + _TOGETHER]))


def _suspicions(texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    parts = [text.encode("utf-8", "replace") for text in texts]
    data = b"\n".join([*parts, b"    "])
    ends = np.cumsum([len(part) + 1 for part in parts])
    kind = np.frombuffer(data.translate(_KIND), np.uint8)
    glued = np.flatnonzero((kind[:-1] == _PUNCTUATION) & (kind[1:] == _LETTER))
    opening = np.flatnonzero(kind == _OPENING)
    for code, positions, holds in (("glued_punctuation", glued, _has_glued_punctuation),
                                   ("doubled_word", _alike_neighbours(data), _has_doubled_word),
                                   ("markup", opening, _has_markup)):
        for at in np.unique(np.searchsorted(ends, positions, side="right")).tolist():
            if holds(CODE.sub("`", texts[at])):
                yield at, code


def _alike_neighbours(data: bytes) -> np.ndarray:
    """Where a word begins that has the first four bytes of the next one, capital or not."""
    data = data.translate(_SMALL)
    starts = np.flatnonzero(np.frombuffer(data, np.uint8)[:-4] == _BLANK) + 1
    word = np.ndarray(len(data) - 3, "<u4", data, strides=(1,))[starts]
    for bits in (8, 16):  # what comes after a word of one or two letters is not of it
        short = (word >> bits) & 0xFF == _BLANK
        word = np.where(short, word & ((1 << bits) - 1) | (0x20202020 >> bits << bits), word)
    return starts[:-1][(word[:-1] == word[1:]) & (word[1:] & 0xFF != _BLANK)]


def _has_glued_punctuation(prose: str) -> bool:
    if _GLUED_SENTENCE.search(prose) and not _ABOUT_CODE.search(prose):
        return True
    return any(" " in line.strip() and _GLUED.search(line) and not _CODE_LINE.search(line)
               for line in prose.splitlines())


def _has_doubled_word(prose: str) -> bool:
    return any(_is_slip(match, prose) for match in _DOUBLED.finditer(prose))


def _is_slip(match: re.Match[str], text: str) -> bool:
    """Is a word there twice by mistake? Names ("Bora Bora") and what is said three times are not."""
    word, again, (start, end) = match[1].lower(), match[2], match.span()
    if again[0].isupper() or text[max(0, start - len(word) - 1): start].rstrip().lower() == word:
        return False
    if word == "a":
        return text[end: end + 1] == " " and text[end + 1: end + 3].isalpha()
    return bool(_NEVER_TWICE.fullmatch(word) or (
        len(word) >= _LONG and word not in _MEANT and _ENGLISH.search(text, max(0, start - 300), end + 300)))


def _has_markup(prose: str) -> bool:
    return any(pattern.search(prose) for pattern in (_TAG, _BBCODE, _WIKI)) and not _ABOUT_MARKUP.search(prose)


def is_cut_off(text: str) -> bool:
    """Does a text of several sentences end in the middle of one?"""
    end = text[-_TAIL:].rstrip()
    if not end or end[-1] in _FULL_STOPS:
        return False
    if "`" in text and len(_FENCE.findall(text)) % 2:
        return True
    return end[-1] not in _CLOSED and _stops_short(end)


def _stops_short(text: str) -> bool:
    """The same of a text that ends in nothing that closes."""
    before, _, line = text.rpartition("\n")
    if _LIST_ITEM.match(line) or _CODE_LINE.search(line):
        return False
    stops = [match.end() for match in _STOP.finditer(line)]
    if not stops and before.rstrip()[-1:] not in _FULL_STOPS:
        return False
    rest = line[stops[-1]:] if stops else line
    size = len(rest.split()) + len(_NO_BLANKS.findall(rest)) // 2
    last = rest.split()[-1]
    if last[0].isalpha() and last[-1] in ",;-–—，、":  # a salutation may end in a comma
        return size >= 4 or last[-1] in "-–—"
    if _GOES_ON.fullmatch(last):
        return size >= (1 if stops else 4)
    if not last[-1].isalpha() or last[0].isupper():  # a name ends a letter
        return False
    return (size >= (4 if stops else 8) and len(_STOP.findall(text)) >= 2
            and all(end in _CLOSED for end in _LINE_END.findall(before)))
