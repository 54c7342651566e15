"""The model used last, kept in the folder of models: the default where nothing else says which one is meant."""

import contextlib
import json
import os
from pathlib import Path

from phicli.artifacts.reading import read_json
from phicli.config import shared
from phicli.errors import BadInput, PhicliError

FILE = Path(shared.MODELS, "phicli-last.json")
LONGEST = 1 << 13  # bytes


def read_last(folder: Path) -> dict[str, str]:
    """The model used last under `folder`, and its root if it is not the usual one; empty where none is known."""
    with contextlib.suppress(OSError, BadInput):
        found = read_json(folder / FILE, LONGEST)
        if isinstance(found, dict) and isinstance(found.get("model"), str) and isinstance(found.get("root", ""), str):
            return {name: found[name] for name in ("model", "root") if found.get(name)}
    return {}


def remember_last(folder: Path, model: str, root: Path) -> None:
    """Keep the model of a root that lies in the folder of models; of another root, or where nothing can be written,
    nothing is kept."""
    from phicli.artifacts.publishing import write_text

    if not root.is_dir() or root.resolve().parent != (folder / shared.MODELS).resolve():
        return
    if os.path.isdir(model) and not os.path.isabs(model):  # noqa: PTH112, PTH117 (a text, with "./" maybe)
        model = os.path.relpath(model, folder)
    last = {"model": model}
    if Path(shared.default_root(model)).name != root.resolve().name:
        last["root"] = f"{shared.MODELS}/{root.resolve().name}"
    if read_last(folder) != last:
        with contextlib.suppress(PhicliError, OSError):
            write_text(folder / FILE, json.dumps(last) + "\n")
