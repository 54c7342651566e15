"""Pictures, sounds and videos beside the text of a row: phicli trains on text alone."""

from collections.abc import Container
from functools import lru_cache
from typing import Any

from phicli.dataset.defects import Defect
from phicli.dataset.understood import Fields

MEDIA = {"image": "a picture", "images": "pictures", "audio": "a sound", "audios": "sounds", "video": "a video",
         "videos": "videos"}  # as LLaMA-Factory, TRL, LLaVA and Ollama call them
_NOTHING = ("", "[]", "{}", "null", "none", "nan")  # in the cell of a table


def check_no_media(fields: Fields, used: Container[str] = (), row: bool = True) -> None:
    """Raise Defect (media) where a field that is not used has a picture, a sound or a video in it.

    row: the fields are those of a row, and not of a message; what drops the field is said then.
    """
    for name, kind in _media_of(tuple(fields)):
        if name not in used and _is_there(fields[name]):
            drops = f"; what drops it: jq -c 'del(.\"{name}\")' FILE > rows.jsonl" if row else ""
            raise Defect("media", f"'{name}' has {kind} beside the text, and phicli trains on text{drops}", name)


@lru_cache(64)  # most rows of a file have the same fields
def _media_of(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """The fields that are called so, in capitals or not, and what they hold."""
    return [(name, MEDIA[known]) for name in names if (known := name.strip().lower()) in MEDIA]


def _is_there(value: Any) -> bool:
    """Whether a value says more than that there is none; of a list or an object, whether a part of it does."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(part not in (None, "", [], {}) for part in value)
    return isinstance(value, str) and value.strip().lower() not in _NOTHING
