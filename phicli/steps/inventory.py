"""What phicli has made and keeps on this machine: models with their stages and adapters, and caches."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from phicli.artifacts import stages
from phicli.artifacts.cache import user_cache
from phicli.artifacts.names import (
    EVALUATION,
    EXPORTED,
    FINETUNED,
    MERGED,
    ONNX_FOLDER,
    SEARCH,
    checkpoint_place,
    unpublished_place,
)
from phicli.artifacts.reading import files_now
from phicli.config.layers import Settings
from phicli.config.root_model import model_of
from phicli.config.shared import MODELS, default_root
from phicli.config.steps import QUANTIZE_ALGORITHMS
from phicli.errors import BadInput, PhicliError, UsageError

SEARCHED = Path(SEARCH).parent.name  # the folder of a search in a root, and what its name ends with
CACHE = "cache"  # what begins the name of a cache: cache/azure
CACHES = {"hashes": "hashes", "kernels": "ops-*", "azure": "azure"}  # name -> in the user's cache folder


@dataclass(frozen=True)
class Made:
    """A result under a root. step: that made it; created: date, "" where it is damaged; about: the manifest."""

    step: str
    place: Path
    created: str
    bytes: int
    about: dict[str, Any]

    @property
    def is_adapter(self) -> bool:
        return self.place.parent.name == FINETUNED


@dataclass(frozen=True)
class Kept:
    """A model's root in the folder of models. name: of its folder; model: what it was made from."""

    name: str
    root: Path
    model: str | None

    @cached_property
    def made(self) -> list[Made]:
        """Its results, in the order of the lab."""
        places = [self.root / name for name in QUANTIZE_ALGORITHMS]
        places += sorted(path.parent for path in self.root.glob(f"{FINETUNED}/[!.]*/{stages.MANIFEST}"))
        found = [_made(place) for place in [*places, self.root / ONNX_FOLDER] if (place / stages.MANIFEST).is_file()]
        evaluation = self.root / EVALUATION
        found += [_evaluated(evaluation)] if evaluation.is_file() else []
        return [one for one in found if one]

    @cached_property
    def derived(self) -> list[Made]:
        """What was made of its results, to be used elsewhere or by itself: merged models and exports."""
        files = (file for pattern in (f"{ONNX_FOLDER}-*", f"{MERGED}/*", f"{EXPORTED}/*")
                 for file in sorted(self.root.glob(f"{pattern}/{stages.MANIFEST}")))
        return [one for file in files if not file.parent.name.startswith(".") and (one := _made(file.parent))]

    @property
    def adapters(self) -> list[str]:
        return [one.place.name for one in self.made if one.is_adapter]

    @property
    def unfinished(self) -> list[str]:
        """Names of adapters whose training was interrupted, or not published."""
        found = (path.name[1:].rpartition(".")[0] for path in self.root.glob(f"{FINETUNED}/.*.*") if path.is_dir())
        return sorted({name for name in found if any(place(self.root / FINETUNED / name).is_dir()
                                                     for place in (checkpoint_place, unpublished_place))})

    @property
    def searched(self) -> list["Kept"]:
        """The roots that a search has made its trials and the best model in."""
        roots = sorted(path for path in self.root.glob(f"{SEARCHED}/[!.]*") if path.is_dir() and not path.is_symlink())
        return [one for one in (Kept(root.name, root, None) for root in roots) if one.made or one.unfinished]

    @property
    def chats(self) -> bool:
        """Whether there is a model that chat can open."""
        return any(one.step == "optimize" for one in self.made)


def kept_models(settings: Settings) -> list[Kept]:
    """The roots in the folder of models that hold something of phicli's."""
    folder = settings.folder / MODELS
    roots = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [Kept(root.name, root, model_of(root)) for root in roots if not root.name.startswith(".")]
    return [one for one in found if one.model or one.made or one.derived or one.searched]


def as_options(settings: Settings, one: Kept) -> list[str]:
    """The options that name a model and its root to another command."""
    usual = settings.folder / default_root(one.model) if one.model else None
    model = ["--model", one.model] if one.model else []
    return model if usual and usual.resolve() == one.root.resolve() else [*model, "--root", str(one.root)]


def find_kept(settings: Settings, name: str) -> tuple[Kept, str | None]:
    """The model called NAME, or the folder of a root; of NAME/ADAPTER the adapter too, of NAME/search "search".

    Raises:
        UsageError: there is none of this name; the message has those that there are.
    """
    models = {one.name: one for one in kept_models(settings)}
    owner, _, adapter = name.rstrip("/").rpartition("/")
    for place, inner in ((name.rstrip("/"), None), (owner, adapter)):
        path = Path(place)
        found = models.get(place) or (Kept(path.resolve().name, path, model_of(path)) if path.is_dir() else None)
        if found is None or not (found.made or found.derived or found.unfinished or found.searched):
            continue
        if inner in (None, *found.adapters, *found.unfinished, *([SEARCHED] if found.searched else [])):
            return found, inner
    names = [full for one in models.values() for full in (one.name, *(f"{one.name}/{a}" for a in one.adapters))]
    raise UsageError(f"nothing of this name; there are: {', '.join(names) or 'none'}", where=name, hint="phicli list")


def caches() -> Iterator[tuple[str, list[Path]]]:
    """phicli's own caches that are there: name and files or folders."""
    for name, pattern in CACHES.items():
        if places := sorted(user_cache().glob(pattern)):
            yield f"{CACHE}/{name}", places


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed. 0 of what has gone meanwhile."""
    try:
        files = files_now(path).values() if path.is_dir() else [path.lstat()]
    except FileNotFoundError:
        return 0
    return sum(file.st_size for file in files if stat.S_ISREG(file.st_mode))


def _made(folder: Path) -> Made | None:
    """None where the result has gone meanwhile."""
    try:
        manifest = stages.read_manifest(folder)
        if manifest is None:
            return None
        return Made(manifest.step, folder, manifest.created, manifest.bytes, vars(manifest))
    except BadInput as e:
        return Made("damaged", folder, "", size_on_disk(folder), {"damaged": e.message})


def _evaluated(file: Path) -> Made | None:
    """None where the file has gone meanwhile."""
    try:
        about = stages.read_sealed(file, "")
        if about is None:
            return None
        about = about if "stages" in about else {"damaged": "no result of phicli evaluate"}
    except PhicliError as e:
        about = {"damaged": e.message}
    return Made("damaged" if "damaged" in about else "evaluate", file, str(about.get("created", "")),
                size_on_disk(file), about)
