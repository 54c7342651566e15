"""Single tokens as text and bytes, for those who want to see them; an answer's text is decoded as a whole."""

import re
from functools import cache

from phicli.text.tokens import Tokens

BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokens: Tokens, ident: int) -> bytes:
    """The bytes that a token stands for, which may be a part of a character; none for an id without a token."""
    piece = tokens.decoder.id_to_token(ident)
    if piece is None:
        return b""
    if piece in tokens.special:
        return piece.encode()
    if match := BYTE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    letters = _letters()
    if tokens.byte_level and letters.keys() >= set(piece):
        return bytes(letters[letter] for letter in piece)
    return piece.replace("▁", " ").encode()


@cache
def _letters() -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes: those that can be seen are themselves, the others follow."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + at): byte for at, byte in enumerate(others)}
