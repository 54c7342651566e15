"""A root remembers its model, so that two models of one short name never take each other's stages for their own."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from phicli.artifacts.names import ROOT_MODEL
from phicli.config.bases import OfModel
from phicli.errors import BadInput, UsageError


def remember_model(root: Path, model: str) -> None:
    """Write down whose stages lie under the root. Raises what `stages.write_text` raises."""
    from phicli.artifacts.stages import write_sealed

    if _known(root) != _names(root, model):
        write_sealed(root / ROOT_MODEL, {"model": model, "names": _names(root, model)})


def models_here() -> list[str]:
    """The models whose stages lie under folders of models/, as they were named."""
    from phicli.artifacts.stages import read_sealed

    found = set()
    for file in Path("models").glob(f"*/{ROOT_MODEL}"):
        with contextlib.suppress(BadInput):
            found.add(str((read_sealed(file, "") or {}).get("model", "")))
    return sorted(name for name in found if name and name.isprintable())


def check_default_root(config: object) -> None:
    """Check the root of a step's settings, unless it was given. Raises as `check_root`."""
    if isinstance(config, OfModel) and not config.root_chosen:
        check_root(config.root_folder, config.model)


def check_root(root: str | Path, model: str) -> None:
    """Check a root that a model has by default only.

    Raises:
        UsageError: it is another model's. BadInput: its file is damaged.
    """
    known = _known(Path(root))
    if known and not set(known) & set(_names(Path(root), model)):
        own = re.sub(r"[^a-z0-9._-]+", "-", model.lower()).strip("-.")
        raise UsageError(f"holds the stages of another model, {known[0]}, and not those of {model}", where=root,
                         hint=f"--root models/{own}")


def _read(root: Path) -> dict[str, Any] | None:
    from phicli.artifacts.stages import read_sealed

    return read_sealed(root / ROOT_MODEL, "remove it: phicli quantize writes it again")


def _known(root: Path) -> list[str]:
    names = (_read(root) or {}).get("names")
    return list(map(str, names)) if isinstance(names, list) else []


def _names(root: Path, model: str) -> list[str]:
    """What a model is called. A folder: by its place, absolute and as seen from the root, in case both are moved.
    Else: by its reference, without the version."""
    from phicli.hub.models import BUILT_IN, local_model

    try:
        folder = local_model(model)
    except BadInput:
        folder = None  # the command itself says so, and better
    if folder and folder.parent != BUILT_IN:
        return [str(folder.resolve()), os.path.relpath(folder.resolve(), root.resolve())]
    return [re.sub(r"(/versions/|/labels/|(?<=azureml:)([^:@]+)[:@])[^/]*$", r"\2", model).lower()]
