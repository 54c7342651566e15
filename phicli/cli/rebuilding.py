"""What makes a folder again that was named to a command: its step, with what the folder was made from."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phicli.artifacts.names import GENAI_CONFIG, ONNX_FOLDER, ROOT_MODEL
from phicli.config.root_model import called, root_around
from phicli.errors import BadInput, PhicliError

if TYPE_CHECKING:
    from phicli.artifacts.stages import Manifest

NAMED = ("path", "base", "stages", "against")  # settings that name folders of results, or NAME=FOLDER
MAKERS = ("quantize", "optimize", "merge")  # commands which put their result where --output says
READ_BY = {"--format": "format", "--map": "columns", "--text-template": "text_template",
           "--chat-template-kwargs": "chat_template_kwargs"}  # options of rows -> their settings
MOST_FILES = 8  # of rows, in a command to paste


def named_folder(error: PhicliError, given: Mapping[str, Any], step: str) -> Path | None:
    """The folder that an error is about and that a step is to make again, if it was named by a flag."""
    from phicli.artifacts.stages import MANIFEST

    if step not in MAKERS:
        return None
    if step == "optimize" and given.get("path"):  # whatever of it is wrong, unless it is a model of another kind
        path = Path(given["path"])
        other = (path / "config.json").exists() and not any((path / name).exists() for name in (MANIFEST, GENAI_CONFIG))
        return None if other else path
    where = Path(str(error.where or ""))
    return next((folder for folder in _folders(given) if where in (folder, folder.resolve())
                 or {folder, folder.resolve()} & set(where.parents)), None)


def in_place_of(path: Path, command: str) -> tuple[str, ...] | None:
    """The command that is meant where a folder that was named as the optimized model is another one: a root, or the
    result of another step. None: it is neither."""
    from phicli.artifacts.stages import MANIFEST, read_manifest

    if not path.is_dir() or (path / GENAI_CONFIG).exists():
        return None
    step, known = None, (path / MANIFEST).exists()
    with contextlib.suppress(BadInput):
        step = manifest.step if (manifest := read_manifest(path)) else None
    roots = [path, *([path.parent, path.parent.parent] if known and step != "optimize" else [])]
    if root := next((root for root in roots if (root / ROOT_MODEL).is_file()), None):
        made = (root / ONNX_FOLDER / GENAI_CONFIG).is_file()
        return command if made else "optimize", "--root", str(root)
    if step == "quantize":
        return "optimize", "--base", str(path)
    return ("run", "--model", str(path)) if step == "merge" or (not known and (path / "config.json").exists()) else None


def _folders(given: Mapping[str, Any]) -> Iterator[Path]:
    for name in NAMED:
        values = given.get(name) or ()
        for value in [values] if isinstance(values, str) else values:
            for text in (value, value.partition("=")[2]):
                if Path(text).is_dir() and text.strip("./"):
                    yield Path(text)


def sources_of(folder: Path) -> list[str]:
    """The options that name to its step what a result was made from, as far as its manifest tells and it is there."""
    from phicli.artifacts.origins import place_of
    from phicli.artifacts.stages import read_manifest
    from phicli.inference.model_folder import merged_into

    if merged_into(folder):
        return ["--root", str(root)] if (root := root_around(folder)) else []
    with contextlib.suppress(BadInput, KeyError, TypeError, ValueError, OSError):
        if manifest := read_manifest(folder):
            name = "model" if "model" in manifest.origins else "base"
            place = place_of(manifest.origins[name], folder)
            if name == "base" and (place.parent / ROOT_MODEL).is_file():
                beside = folder.parent.resolve() == place.parent
                return ["--root", str(folder.parent if beside else place.parent)]
            return [f"--{name}", called(place)] if place.is_dir() else []
    return []


def training_of(adapter: Path) -> list[str] | None:
    """The options by which `phicli run` trains an adapter again: its name, rows, how they are read, and how long, as
    its manifest tells. None where not all of its rows are there any more, as others would take their place."""
    from phicli.artifacts.stages import read_manifest

    found = ["--name", adapter.name]
    with contextlib.suppress(BadInput, KeyError, TypeError, ValueError, OSError):
        if manifest := read_manifest(adapter):
            if (rows := _rows_of(adapter, manifest)) is None:
                return None
            found += rows
            for flag, name in READ_BY.items():
                given = manifest.settings[name] or []
                found += [part for text in ([given] if isinstance(given, str) else given) for part in (flag, text)]
            epochs, steps = manifest.settings["epochs"], manifest.settings["max_steps"]
            found += ["--epochs", f"{epochs:g}"] if epochs else ["--max-steps", str(steps)]
    return found


def _rows_of(adapter: Path, manifest: "Manifest") -> list[str] | None:
    """The files that an adapter was trained on, as options; None: not all are there, or they are very many."""
    from phicli.artifacts.origins import rows_of

    rows = rows_of(manifest, adapter)
    if len(rows) > MOST_FILES or not all(place.exists() for place, _ in rows):
        return None
    return [part for place, weight in rows
            for part in ("--data", called(place) + (f":{weight:g}" if weight != 1 else ""))]
