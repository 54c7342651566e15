"""Strangers' text for a terminal: characters that could command it, or deceive who reads it, are spelled out."""

import json
import re

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all controls but tab and new line
    "\u00ad\u034f\u17b4\u17b5\u180e\u200b\u2060-\u2064\u3164\uffa0\ufeff\U000e0000-\U000e007f"  # not to be seen
    "\u2028-\u202e\u2066-\u206f\ufff9-\ufffb"  # separators, and what turns the order of others round
    "\ud800-\udfff]"  # bytes of names that are not UTF-8, and halves of pairs
    "|(?<=[\x00-\x7f])[\u061c\u200c-\u200f]"  # joiners and marks, which other scripts and emoji need
)


def printable(text: str) -> str:
    """The text with such characters as `\\x1b` or `\\u202e`; tabs and new lines stay."""
    return _UNSAFE.sub(_spelled, text)


def printable_json(document: str) -> str:
    """The same for JSON, in its own way of spelling: the document means what it meant."""
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], document)


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it cannot decode
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
