"""Text that went wrong on its way into the file: how to see it, and what can be undone."""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from html.entities import html5

NOT_A_VALUE = {"nan", "null", "nat", "<na>", "#n/a", "undefined"}  # what a data frame's empty cell becomes as text

# C0 without tab and newline, DEL, C1, byte order mark, noncharacters.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|([A-Za-z][A-Za-z0-9]{1,30}));")
# Markdown's code: fenced, between backticks, indented.
CODE = re.compile(r"^[ \t>]*(```|~~~).*?(?:^[ \t>]*\1|\Z)|(?<!`)(`+)(?!`)(?:(?!\n[ \t]*\n).){1,1000}?(?<!`)\2(?!`)"
                  r"|^(?: {4}|\t)[^\n]*", re.DOTALL | re.MULTILINE)
# Where an entity is meant: HTML and XML themselves, and words about them.
_ENTITIES_MEANT = re.compile(
    r"</?[a-z][\w:.-]*(?:\s[^<>]*)?/?>|<!--|<!doctype\b|<\?xml\b"
    r"|(?<![./<])\b(?:x?html\d?|xml|entity|entities|ampersands?|(?:un)?escape (?:characters?|codes?|sequences?))\b",
    re.IGNORECASE)


def _as_windows_1252(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)  # the five bytes that it leaves undefined pass as they are


_CHARACTER = [_as_windows_1252(b) for b in range(256)]
_BYTE = {c: b for b, c in enumerate(_CHARACTER)} | {chr(b): b for b in range(0x80, 0xA0)}  # Latin-1's C1 too
_NEXT = "[" + re.escape("".join(c for c, b in _BYTE.items() if 0x80 <= b < 0xC0)) + "]"
_NO_QUOTE = f"(?![‘’“”»«›‹]){_NEXT}"

_MAYBE = re.compile(f"[ÂÃÄÅâïðÎ-Ñ×-Ûã-é]{_NEXT}")  # 15 times as fast to look for, and most texts have none

# UTF-8 read as Windows-1252. Only sequences that correct text hardly has: after other letters a quotation mark or a
# no-break space is ordinary ("Spaß“", "à «"), so rare leads count in pairs.
MOJIBAKE = re.compile(
    f"(?:[ÂÃ]{_NEXT}|[ÄÅ]{_NO_QUOTE}|â{_NEXT}{{2}}|ï[»¼½¿]{_NEXT}|ð{_NEXT}{{3}}"
    f"|(?:[Î-Ñ×-Û]{_NEXT}){{2,}}|(?:[ã-é]{_NEXT}{{2}}){{2,}})+"
)
# Where there is one, single ones are most likely the same: " Ð¸ " in Russian.
_ALL_MOJIBAKE = re.compile(f"(?:[ÂÃÄÅËÎ-Ñ×-Û]{_NEXT}|[à-ï]{_NEXT}{{2}}|ð{_NEXT}{{3}})+")


def row_findings(texts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(name of the text, code of `findings.KINDS`) for the texts of a row; no HTML entities where they are meant."""
    meant: bool | None = None
    for name, text in texts:
        for code in text_findings(text):
            if code == "html_entity":
                meant = are_entities_meant(text for _, text in texts) if meant is None else meant
                if meant:
                    continue
            yield name, code


def are_entities_meant(texts: Iterable[str]) -> bool:
    """Does a row have HTML entities for their own sake: in code, beside tags, or with words about them?"""
    return any(_ENTITIES_MEANT.search(text) or any(ENTITY.search(code[0]) for code in CODE.finditer(text))
               for text in texts)


def text_findings(text: str) -> Iterator[str]:
    """Codes of `findings.KINDS` that hold for a field's text, whatever stands beside it."""
    bare = text.strip()
    if not bare:
        yield "empty_field"
        return
    if len(bare) < 10 and bare.lower() in NOT_A_VALUE:
        yield "nan_text"
    if not text.isascii():
        if "\ufffd" in text:
            yield "replacement_character"
        if has_mojibake(text):
            yield "mojibake"
    if not text.isprintable() and CONTROL.search(text):  # the former takes half the time
        yield "control_character"
    if "&" in text and any(map(_is_entity, ENTITY.finditer(text))):
        yield "html_entity"


def has_mojibake(text: str) -> bool:
    """Is there UTF-8 in it that was read as Windows-1252 or Latin-1?"""
    return not text.isascii() and bool(_MAYBE.search(text) and MOJIBAKE.search(text))


def repair(text: str, entities: bool = True) -> str:
    """The text with mojibake, control characters and, if asked for, HTML entities undone; what is lost for good stays.

    Entities are decoded once: what is escaped twice is most likely about them.
    """
    text = _sound(text)
    if entities and "&" in text:
        text = _sound(ENTITY.sub(lambda m: html.unescape(m[0]) if _is_entity(m) else m[0], text))
    return text


def _sound(text: str) -> str:
    """The text without mojibake and control characters."""
    for _ in range(10):  # it may have happened more than once
        before = text
        if has_mojibake(text):
            text = _ALL_MOJIBAKE.sub(_undo, text)
        if text != before:
            continue  # until it is all undone, its bytes can look like control characters
        if CONTROL.search(text):
            text = CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
        if text == before:
            break
    return text


def _undo(match: re.Match[str]) -> str:
    try:
        return bytes(_BYTE[c] for c in match[0]).decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def _is_entity(match: re.Match[str]) -> bool:
    return match[1] is None or match[1] + ";" in html5
