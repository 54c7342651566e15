"""Why a row cannot be used."""

import json
from typing import Any


class Defect(Exception):
    """Why a line or a row cannot be used: a code of `findings.KINDS`, the field it is about, and details."""

    def __init__(self, code: str, message: str, field: str | None = None):
        super().__init__(message)
        self.code, self.message, self.field = code, message, field


def check_text(value: Any, name: str) -> None:
    """Raise Defect (not_text, lone_surrogate) where a field is no text."""
    if not isinstance(value, str):
        raise Defect("not_text", f"'{name}' is {kind_of(value)}, not text", name)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Defect("lone_surrogate", f"'{name}' has half of a character (a lone surrogate)", name) from None


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return kinds.get(type(value), "a number")
