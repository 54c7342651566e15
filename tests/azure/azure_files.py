"""Folders compared as what they hold."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of all files that are not hidden."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and not p.name.startswith(".")}
