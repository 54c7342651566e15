"""Removing what phicli has made: only what its own manifests, names and places prove to be phicli's."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from phicli.artifacts import stages
from phicli.artifacts.generations import of_one_generation
from phicli.artifacts.locks import held, holder
from phicli.artifacts.names import (
    ACCEPTED,
    ADAPTER_SUFFIX,
    ADAPTERS,
    BENCHMARK,
    CHECKPOINT_FILES,
    EXPORTED,
    FINETUNED,
    MERGED,
    ONNX_FOLDER,
    ROOT_MODEL,
    SEARCH,
    checkpoint_place,
    unpublished_place,
)
from phicli.artifacts.places import real
from phicli.artifacts.publishing import beside
from phicli.config.last_used import FILE as LAST
from phicli.config.layers import Settings
from phicli.errors import BadInput, Missing, UsageError
from phicli.export.chat_files import TEMPLATE_SUFFIX
from phicli.progress import SILENT, Progress
from phicli.steps.inventory import CACHE, SEARCHED, Kept, Made, caches, find_kept, size_on_disk

GONE = "gone"  # in a temporary folder: what is removed, out of its place already


@dataclass(frozen=True)
class Removal:
    """What goes. locked: whose lock is held meanwhile; folders: that go too if nothing is left in them; root: the one
    among them of which nothing should be left.
    """

    name: str
    places: list[Path]
    locked: list[Path]
    folders: list[Path]
    root: Path | None = None

    @property
    def bytes(self) -> int:
        return sum(map(size_on_disk, self.places))

    @property
    def left(self) -> list[str]:
        """Names of what is in the root besides, once all of this is gone."""
        return sorted(path.name for path in self.root.iterdir()) if self.root and self.root.is_dir() else []


def plan_removal(settings: Settings, name: str) -> Removal:
    """What the removal of a model, MODEL/ADAPTER, MODEL/search or cache/NAME takes away; nothing is changed.

    Raises:
        UsageError: there is nothing of this name. BadInput: it holds what is not known to be phicli's.
    """
    if name.startswith(f"{CACHE}/"):
        there = dict(caches())
        if name not in there:
            raise UsageError(f"no such cache; there are: {', '.join(there) or 'none'}", where=name, hint="phicli list")
        return Removal(name, there[name], _downloads(there[name]), [])
    model, inner = find_kept(settings, name)
    if inner == SEARCHED and inner not in (*model.adapters, *model.unfinished):
        return _of_search(settings, model, name)
    if inner:
        return _of_adapter(model, inner, name)
    places, locked = _stages([*model.made, *model.derived], model, model.unfinished)
    places += [path for path in _of_root(settings, model) if path.is_file() and not path.is_symlink()]
    search = _of_search(settings, model, name)
    within = [model.root / inside for inside in (FINETUNED, MERGED, EXPORTED, "logs")]
    return Removal(name, list(dict.fromkeys(search.places + places)), search.locked + locked,
                   [*search.folders, *within, model.root], model.root)


def _of_adapter(model: Kept, adapter: str, name: str) -> Removal:
    made = [one for one in model.made if one.is_adapter and one.place.name == adapter]
    places, locked = _stages(made, model, [one for one in model.unfinished if one == adapter])
    onnx = model.root / ONNX_FOLDER
    files = [onnx / ADAPTERS / (adapter + suffix) for suffix in (ADAPTER_SUFFIX, TEMPLATE_SUFFIX)]
    return Removal(name, places + [file for file in files if file.is_file()], [*locked, onnx],
                   [model.root / FINETUNED])


def _of_search(settings: Settings, model: Kept, name: str) -> Removal:
    """What a search has made, its figures too; nothing where there was none."""
    trials = [plan_removal(settings, str(one.root)) for one in model.searched]
    document = model.root / SEARCH
    places = [document] if document.is_file() and stages.is_sealed(document) else []
    return Removal(name, [place for one in trials for place in one.places] + places,
                   [document.parent] * bool(trials or places) + [place for one in trials for place in one.locked],
                   [folder for one in trials for folder in one.folders] + [document.parent])


def _stages(made: Sequence[Made], model: Kept, unfinished: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The places of results and of training that was interrupted, and whose locks are held meanwhile."""
    for one in made:
        _check_ours(one)
    trained = [model.root / FINETUNED / name for name in unfinished]
    places = [one.place for one in made]
    return places + [path for one in trained for path in _unfinished(one)], list(dict.fromkeys([*places, *trained]))


def remove(removal: Removal, progress: Progress = SILENT) -> None:
    """Take it away: each folder leaves its place at once, so that a kill leaves none half there.

    Raises:
        Missing: another process works on it; nothing is removed then. Or it may not be written to.
    """
    with contextlib.ExitStack() as locks:
        for folder in removal.locked:
            if not locks.enter_context(held(folder, progress, wait=False)):
                raise Missing(f"{holder(folder) or 'another process'} works on it", where=folder,
                              hint="wait until it has ended")
        for place in removal.places:
            _take_away(place)
    for folder in removal.folders:
        with contextlib.suppress(OSError):  # something is left in it
            folder.rmdir()


def _take_away(place: Path) -> None:
    with stages.writing(place):
        if not place.is_dir():
            place.unlink(missing_ok=True)
            return
        with beside(place) as scratch:
            real(place).rename(scratch / GONE)
        if place.is_symlink():
            place.unlink()


def _check_ours(made: Made) -> None:
    """Raise BadInput where a stage's manifest does not say that all in its folder is the step's."""
    found = "damaged: " + made.about["damaged"] if made.step == "damaged" else None
    if not found and made.place.is_dir() and (foreign := of_one_generation(made.place, lambda: _foreign(made.place))):
        found = f"{foreign} is in it, which no step of phicli made"
    if found:
        raise BadInput(found, where=made.place, hint="move away what is yours, then remove the folder yourself")


def _foreign(folder: Path) -> str | None:
    manifest = stages.read_manifest(folder)
    if manifest is None and not folder.is_dir():  # removed meanwhile
        return None
    return stages.foreign_file(folder, manifest) if manifest and manifest.files else "no list of files"


def _unfinished(adapter: Path) -> Iterator[Path]:
    """What training an adapter has left beside it: a checkpoint, a result that was not published."""
    checkpoint, unpublished = checkpoint_place(adapter), unpublished_place(adapter)
    with contextlib.suppress(FileNotFoundError):  # training has ended meanwhile
        if checkpoint.is_dir() and not checkpoint.is_symlink() and (
                {path.name for path in checkpoint.iterdir()} <= set(CHECKPOINT_FILES)):
            yield checkpoint
    if unpublished.is_dir() and (manifest := stages.read_manifest(unpublished)) and (
            not stages.foreign_file(unpublished, manifest)):
        yield unpublished


def _of_root(settings: Settings, model: Kept) -> Iterator[Path]:
    """Small files of phicli's in a root, and that which names its model as the last used one."""
    yield model.root / ROOT_MODEL
    yield from (model.root / "logs").glob("phicli-*.log")
    yield from (file for file in (model.root / BENCHMARK, model.root / ACCEPTED) if stages.is_sealed(file))
    if settings.last and Path(settings.last.get("root", "")).name in ("", model.name) and (
            model.model == settings.last["model"]):
        yield settings.folder / LAST


def _downloads(places: list[Path]) -> list[Path]:
    """The folders in a cache whose locks are there."""
    return [Path(where, name[1 : -len(".lock")]) for place in places for where, _, names in os.walk(place)
            for name in names if name.startswith(".") and name.endswith(".lock")]
