"""Names that a service gives, before they become paths: none leads elsewhere, none means another file elsewhere."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from phicli.errors import BadInput

LONGEST, DEEPEST = 255, 32  # bytes of a part of a name, and parts
_FORBIDDEN = re.compile(r'[\\:*?"<>|]')  # of Windows; the first two lead out of a folder there
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.I)


def check_file_names(names: Iterable[str]) -> None:
    """Raise BadInput unless these can be the files of one folder, on every system, each for itself."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        check_path(name)
        key = _key(name)
        if key in seen:
            raise BadInput(f"the same file as {seen[key]!r} on many systems", where=repr(name))
        seen[key] = name
        folders.update((_key(str(parent)), name) for parent in PurePosixPath(name).parents)
    for key in seen.keys() & folders.keys():
        raise BadInput(f"a file's name, and a folder's in {folders[key]!r}", where=repr(seen[key]))


def check_path(name: str) -> None:
    """Raise BadInput if a relative name such as "adapters/travel.onnx_adapter" leads out of its folder, or to a device.

    A name with control characters, or one that some system cannot have, is refused too.
    """
    parts = name.split("/")
    if len(parts) > DEEPEST or not all(_good(part) for part in parts):
        raise BadInput("a file name that leads out of the model's folder, or that some systems cannot have",
                       where=repr(name[:LONGEST]))


def _good(part: str) -> bool:
    return (part.isprintable() and part not in ("", ".", "..") and part[-1] not in ". " and part[0] != " "
            and len(part.encode()) <= LONGEST and not _FORBIDDEN.search(part) and not _DEVICE.fullmatch(part))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
