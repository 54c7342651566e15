"""Where the inputs of a result lie, what is in them, and what those were made from: back to rows and model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phicli.artifacts.stages import Manifest, fingerprint, read_manifest
from phicli.errors import BadInput

MOST_FILES = 1000  # of an input, that are told one by one; of one with more, its fingerprint is
CHAIN = ("step", "inputs", "settings", "versions", "created", "origins")  # what is told of an input that is a stage
NEAR = 2  # folders up, from a result to the root


def origin(path: Path, files: Mapping[str, str], target: Path) -> dict[str, Any]:
    """What a manifest says of an input.

    Args:
        files: as `stages.contents` gives them. target: the result, from which a path under the same root is seen.

    Returns:
        {"path", "files": name -> hash (left out of an input with very many), "made": of a stage, its manifest's chain}.

    Raises:
        BadInput: it is a stage whose manifest is damaged.
    """
    found: dict[str, Any] = {"path": _seen_from(path, target)}
    if len(files) <= MOST_FILES:
        found["files"] = {told(name): content for name, content in files.items()}
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest:
        found["made"] = {name: getattr(manifest, name) for name in CHAIN}
    return found


def place_of(found: Mapping[str, Any], target: Path) -> Path:
    """Where an input of the result at `target` was. Raises KeyError, TypeError: the entry is no `origin`."""
    return Path(os.path.normpath(os.path.realpath(target) / Path(found["path"])))


def rows_of(manifest: Manifest, target: Path) -> list[tuple[Path, float]]:
    """Where the files of rows were that an adapter at `target` was trained on, and how often the rows of each count.

    Raises KeyError, TypeError, ValueError: the manifest does not tell.
    """
    names = sorted((name for name in manifest.inputs if name.split()[0] == "data"), key=lambda name: int(name[5:] or 1))
    weights = manifest.settings.get("data_weights") or [1.0] * len(names)
    return [(place_of(manifest.origins[name], target), weight) for name, weight in zip(names, weights, strict=True)]


def still_there(name: str, result: Path) -> Path | None:
    """Where an input of a result lies, if its manifest says so and it is still what it was."""
    try:
        if (manifest := read_manifest(result)) is None:
            return None
        place = place_of(manifest.origins[name], result)
        same = (place.is_dir() or place.is_file()) and fingerprint(place) == manifest.inputs[name]
    except (BadInput, KeyError, TypeError, ValueError, OSError):
        return None
    return place if same else None


def told(name: str) -> str:
    """A file's name as JSON in UTF-8 can hold it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _seen_from(path: Path, target: Path) -> str:
    """From the result where both lie under one root, so that the root may be moved; else from the top."""
    place = os.path.realpath(path)
    near = os.path.relpath(place, os.path.realpath(target)) if os.name != "nt" else place
    return told(near if Path(near).parts.count("..") <= NEAR else place)
