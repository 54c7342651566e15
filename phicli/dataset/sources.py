"""What a user names as data on this machine: files, stdin, folders of splits, and how much each of them counts."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from phicli.artifacts.names import ACCEPTED, BENCHMARK, EVALUATION, ROOT_MODEL, SEARCH
from phicli.artifacts.stages import MANIFEST
from phicli.config.last_used import FILE as LAST_USED
from phicli.config.layers import expand
from phicli.config.shared import DATA, EVAL_DATA
from phicli.dataset.formats import COMPRESSIONS, READERS, ending
from phicli.errors import BadInput, UsageError
from phicli.progress import SILENT, Progress

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
DATA_FILES = [f"*{suffix}{packed}" for suffix in READERS for packed in ("", *COMPRESSIONS)]
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",  # `datasets` writes these,
         ROOT_MODEL, EVALUATION, BENCHMARK, ACCEPTED, Path(SEARCH).name, LAST_USED.name)  # and phicli these
MOST_FILES = 100_000
SHOWN = 5  # files that a message names
LABS = (*DATA, EVAL_DATA)
PACKAGED = Path(__file__).parents[1], Path(__file__).parents[2]  # as installed from a wheel, and in a checkout
_WEIGHT = re.compile(r"(.+):(\d+\.?\d*|\.\d+)")


class Source(NamedTuple):
    """A file of rows ("-" is stdin), and how many times its rows count in an epoch."""

    path: str | Path
    weight: float = 1.0


def split_weight(name: str) -> tuple[str, float]:
    """What is named and its weight: `rows.jsonl:2` is rows.jsonl, twice, unless a file has that whole name.

    Raises:
        UsageError: the weight is zero, or too large for a number.
    """
    found = _WEIGHT.fullmatch(name)
    if not found or local_path(name):
        return name, 1.0
    weight = float(found[2])
    if not 0 < weight < math.inf:
        raise UsageError("a weight is a number over 0", where=name, hint=f"{found[1]}:0.5 takes half of its rows")
    return found[1], weight


def local_path(name: str) -> Path | None:
    """The file or folder of this name, of the lab's own rows else those in the package; None if there is none."""
    place = expand(name)
    if os.path.exists(place):  # noqa: PTH110 (Path.exists raises where it is too long)
        return Path(place)
    return next((folder / name for folder in PACKAGED if (folder / name).is_file()), None) if name in LABS else None


def split_name(split: str) -> str:
    """The usual name of a split: "validation" for "dev". Raises UsageError if there is none of that name."""
    for name, called in SPLITS.items():
        if split in called:
            return name
    raise UsageError(f"no such split: {split!r}", hint=f"one of {', '.join(SPLITS)}")


def find_files(folder: Path, split: str, progress: Progress = SILENT) -> list[Path]:
    """The files of one split in a folder, in the order of their names, those in folders below it too.

    A file belongs to the split that its name says (train.jsonl, data/train-00000-of-00003.parquet), or else the nearest
    folder's (validation/rows.csv): as `datasets` has it, by a word of its own, wherever it stands in the name. Where no
    file is named for training, files that name no split are for training. What is not, a warning says.

    Raises:
        UsageError: no such split, several data sets in the folder, or one of them in several containers.
        BadInput: no data files in it, none of this split, or more than MOST_FILES.
    """
    split = split_name(split)
    files = _data_files(folder)
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path.relative_to(folder)) or "", []).append(path)
    unnamed = splits.pop("", [])
    if unnamed and "train" not in splits:
        splits["train"] = unnamed
    if split not in splits:
        there = ", ".join(f"{name} ({len(splits[name])})" for name in SPLITS if name in splits)
        raise BadInput(f"no files of the split {split} in it, only of {there}", where=folder,
                       hint=f"a file named {split}.jsonl, or name a file instead of the folder")
    found = splits[split]
    if split == "train":
        taken = set(found)
        others = [path for name in SPLITS for path in splits.get(name, ()) if path not in taken]
        _tell_left_out(folder, [*others, *(path for path in unnamed if path not in taken)], len(files), progress)
    if found is not unnamed:
        _check_one(folder, {str(_set_of(path.relative_to(folder))) for path in found}, "several data sets are in it")
        _check_one(folder, {ending(path) for path in found}, f"its split {split} is there in several containers")
    return found


def _tell_left_out(folder: Path, others: Sequence[Path], files: int, progress: Progress) -> None:
    """Warn of files in a folder that are not for training, of so many in it."""
    named = [f"{place} ({_split_of(place) or 'no split'})" for place in (path.relative_to(folder) for path in others)]
    if named:
        progress.warn(f"{folder}: {len(named)} of {files} files are not taken for training, since by their names they "
                      f"are not of the split train: {', '.join(named[:SHOWN])}{', …' if len(named) > SHOWN else ''}")


def _data_files(folder: Path) -> list[Path]:
    """The files of rows in a folder; hidden ones, files about the data set, and results of phicli's are none."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        if MANIFEST in names or (ROOT_MODEL in names and Path(place) != folder):  # a root may hold its data too
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        found += [Path(place, name) for name in sorted(names)
                  if ending(name) in READERS and name[0] not in "._" and name not in ABOUT]
        if len(found) > MOST_FILES:
            raise BadInput(f"more than {MOST_FILES:,} files", where=folder)
    if not found:
        raise BadInput("no files of rows in it", where=folder, hint=f"files ending in {', '.join(READERS)}")
    return found


def _split_of(path: Path) -> str | None:
    return next((split for part in reversed(path.parts) if (split := _split_in(part))), None)


def _split_in(name: str) -> str | None:
    """The split that a file's or folder's name has as a word of its own."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for word in words for split, called in SPLITS.items() if word in called), None)


def _set_of(path: Path) -> Path:
    """The folder of a data set, of which this is a file of one split."""
    return Path(*(part for part in path.parent.parts if not _split_in(part)))


def _check_one(folder: Path, found: Iterable[str], what: str) -> None:
    names = sorted(found)
    if len(names) > 1:
        raise UsageError(f"{what}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}", where=folder,
                         hint="name the one that is meant, or each with --data")
