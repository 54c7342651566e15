"""Parts of documents that may hold anything, as what they should be, or as nothing."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from phicli.units import number

MOST, LONGEST = 60, 2000  # entries of a kind, characters of a text
NAME = 100  # characters of one


class Named(NamedTuple):
    """A line or a box: what it is, what it says, and what else there is to it."""

    name: str
    value: str
    more: str = ""


def figure(value: Any) -> float | None:
    """A number that can be drawn; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15 or math.isnan(value):
        return None
    return 0.0 if abs(value) < 1e-15 else float(value)


def shown(value: float | None, digits: int = 4) -> str:
    return "" if value is None else number(value, digits)


def table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What stands there, if it is an object."""
    found = document.get(key)
    return found if isinstance(found, dict) else {}


def entries(value: Any, most: int = MOST) -> list[Mapping[str, Any]]:
    """The first objects of a list."""
    objects: list[Mapping[str, Any]] = []
    if isinstance(value, list):
        objects += [one for one in value if isinstance(one, dict)]
    return objects[:most]


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings with their values, those that say nothing left out."""
    texts = {name: ", ".join(map(str, value[:MOST])) if isinstance(value, list) else value
             for name, value in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in texts.items() if value not in (None, "", False))[:LONGEST]
