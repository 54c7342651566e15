"""Where results may go: what stands there already must be nothing, or something that a result may take the place of."""

import contextlib
import os
from pathlib import Path

from phicli.artifacts.reading import open_regular
from phicli.errors import BadInput

FIRST_BYTES = 1000  # of a file, in which a mark stands
_HINT = "name another place, or move it away"


def real(place: Path) -> Path:
    """The absolute path without links: of a link to a folder, that folder, which keeps its file system and the link."""
    return Path(os.path.realpath(place))


def check_folder_place(place: Path) -> None:
    """Raise BadInput unless nothing stands there, a folder, or a link to a folder."""
    if not place.is_dir() and os.path.lexists(place):
        what = "a link to no folder" if place.is_symlink() else "no folder"
        raise BadInput(f"what stands there is {what}, and a folder is to be made", where=place, hint=_HINT)
    if place.is_dir() and os.path.ismount(real(place)):
        raise BadInput("a file system begins there, and its first folder cannot be replaced", where=place,
                       hint="name a folder in it")


def check_file_place(place: Path) -> None:
    """Raise BadInput unless nothing stands there or a regular file; a link is neither."""
    if place.is_symlink() or (place.exists() and not place.is_file()):
        what = "a link" if place.is_symlink() else "a folder" if place.is_dir() else "no regular file"
        raise BadInput(f"what stands there is {what}, and a file is to be written", where=place, hint=_HINT)


def check_own_place(place: Path, mark: str, what: str) -> None:
    """Raise BadInput unless nothing stands there or a file with `mark` in its first lines. what: it is, in words."""
    check_file_place(place)
    with contextlib.suppress(FileNotFoundError), open_regular(place) as file:
        if mark.encode() not in file.read(FIRST_BYTES):
            raise BadInput(f"the file there is no {what} of phicli's", where=place,
                           hint="move it away, or name another with --output")


def check_apart(place: Path, source: Path) -> None:
    """Raise BadInput if a result at `place` would lie in the folder that it is made from, or replace what it is."""
    result, made_from = real(place), real(source)
    if made_from.is_dir() and result.is_relative_to(made_from):
        raise BadInput(f"the result would lie in {source}, which it is made from", where=place,
                       hint=f"--root {made_from}-lab, or another folder outside")
    if made_from.is_relative_to(result):
        raise BadInput(f"the result would replace {source}, which it is made from", where=place,
                       hint="name another place")
