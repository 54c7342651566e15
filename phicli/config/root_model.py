"""The model of a root, as the root itself tells it: the default where a root is given and no model."""

import contextlib
from pathlib import Path

from phicli.artifacts.names import ROOT_MODEL
from phicli.config.steps import QUANTIZE_ALGORITHMS
from phicli.errors import BadInput

BUILT_IN = Path(__file__).parents[1] / "models"


def model_of(root: Path) -> str | None:
    """The model whose stages lie under a root, as the user called it; None where that is not known."""
    from phicli.artifacts.stages import read_sealed

    with contextlib.suppress(BadInput, OSError):
        found = (read_sealed(root / ROOT_MODEL, "") or {}).get("model")
        return found if isinstance(found, str) else None
    return None


def model_from(root: Path) -> str | None:
    """The model of a root, as it is to be called from the working folder, also where the root was copied elsewhere;
    a folder that is in another place now is looked for from the top, and from the root as it lay then."""
    from phicli.artifacts.stages import read_sealed

    with contextlib.suppress(BadInput, OSError, ValueError):
        found = read_sealed(root / ROOT_MODEL, "") or {}
        model, names = found.get("model"), found.get("names")
        if not isinstance(model, str) or not model.strip() or not model.isprintable():
            return next(filter(None, map(_quantized_from, (root / name for name in QUANTIZE_ALGORITHMS))), None)
        if not isinstance(names, list) or len(names) != 2:  # no folder
            return model
        top, near = Path(str(names[0])), root / str(names[1])
        if Path(model).exists() and Path(model).resolve() == top:
            return model
        return next((str(place) for place in (top, near) if place.exists()), model)
    return None


def root_around(folder: Path) -> Path | None:
    """The root that a stage's folder lies in; None where it lies elsewhere."""
    found = around(folder)
    return found if (found / ROOT_MODEL).is_file() else None


def around(folder: Path) -> Path:
    """The folder that a folder lies in, seen from the working folder as that is."""
    return folder.parent if folder.name not in ("", "..") else folder / ".."


def original_of(folder: Path) -> str | None:
    """The model that a result was quantized from, as the root around it calls it, else by its folder; None where it is
    no such result, or the model is gone."""
    made_from, around = _quantized_from(folder), root_around(folder)
    return ((model_from(around) if around else None) or made_from) if made_from else None


def _quantized_from(folder: Path) -> str | None:
    from phicli.artifacts.origins import place_of
    from phicli.artifacts.stages import read_manifest

    with contextlib.suppress(BadInput, KeyError, TypeError):
        manifest = read_manifest(folder)
        if manifest and (place := place_of(manifest.origins["model"], folder)).is_dir():
            return called(place)
    return None


def called(model: Path) -> str:
    """A model's folder, or the name of a built-in one."""
    return model.name if model.parent == BUILT_IN.resolve() else str(model)
