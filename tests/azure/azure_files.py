"""Folders compared as what they hold."""

import contextlib
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of all files that are not hidden."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and not p.name.startswith(".")}


def every_content(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of all files, hidden ones too, of a folder that another process may be writing to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found
