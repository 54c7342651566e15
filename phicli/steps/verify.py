"""Provenance: whether results are, byte by byte, what their steps wrote, and what they were made from, as far back as
manifests tell."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

from phicli.artifacts import hashing, stages
from phicli.artifacts.generations import generation, of_one_generation
from phicli.artifacts.names import ROOT_MODEL
from phicli.artifacts.origins import place_of, told
from phicli.errors import BadInput, Missing
from phicli.progress import SILENT, Progress, Task
from phicli.steps.inventory import Kept

_PLACES = "a root, a stage's folder in it, or evaluation.json"
_AGAIN = "phicli run"
DEEPEST = 50  # links of a chain that are followed
MANY, MOST_UNTOLD = 1000, 1_000_000  # files beyond those expected; of an input whose files are not told one by one


class Found(StrEnum):
    WHOLE = "whole"
    CHANGED = "changed"
    ELSEWHERE = "not here"


@dataclass(frozen=True)
class Verified:
    """One thing that was looked at.

    depth: links away from what was asked for. name: what it is to the result above. step: that made it, if one did.
    fingerprint: as the result above has it, "" of what was asked for. wrong: each file that is not as it was, in words.
    """

    depth: int
    name: str
    step: str
    place: str
    state: Found
    fingerprint: str = ""
    wrong: list[str] = field(default_factory=list)


def verify(place: Path, others: Sequence[Path] = (), progress: Progress = SILENT) -> list[Verified]:
    """Compare results with their manifests, and what they were made from with what it was then. Everything is read.

    Args:
        place: a root, a stage's folder, or evaluation.json. others: files and folders in which an input may be that is
            no longer where it was; it is told by its content.

    Returns:
        what was looked at, each result before its inputs. A stage that is met again is not followed again.

    Raises:
        Missing: nothing of phicli's is there. BadInput: one of `others` cannot be read.
    """
    if not place.exists():
        raise Missing("no such file or folder", where=place, hint=_PLACES, also=["phicli list"])
    is_result = place.is_file() or (place / stages.MANIFEST).exists()
    if not is_result and not Kept(place.name, place, None).made:
        raise Missing("no result of phicli's is there", where=place, hint=_PLACES, also=["phicli list"])
    with hashing.reading_all(), progress.task("verify", None, "files") as task:
        work = _Verification(others, task)
        return list(work.result(0, place.name, place) if is_result else work.root(place))


class _Verification:
    def __init__(self, others: Sequence[Path], task: Task):
        self.task = task
        self.read: dict[tuple[str, Any], dict[str, str]] = {}  # place and its generation -> hashes of its files
        self.followed = set[str]()
        self.others = {stages.fingerprint_of(_counted(self.contents(path))): path for path in others}

    def root(self, root: Path) -> Iterator[Verified]:
        """All results under a root, and the file that names its model."""
        results = Kept(root.name, root, None).made
        for made in results:  # which are inputs of each other, wherever the root was when they were made
            with contextlib.suppress(BadInput):
                self.others.setdefault(stages.fingerprint_of(_counted(self.contents(made.place))), made.place)
        for made in results:
            yield from self.result(0, made.place.relative_to(root).as_posix(), made.place)
        if (file := root / ROOT_MODEL).exists():
            wrong = list(self.document(file)[1])
            yield Verified(0, ROOT_MODEL, "", str(file), _state(wrong), "", wrong)

    def result(self, depth: int, name: str, place: Path, fingerprint: str = "") -> Iterator[Verified]:
        """A stage's folder or evaluation.json, and what it was made from.

        fingerprint: what the result above was made from; "" if nothing above was.
        """
        document, wrong = self.document(place)
        if not wrong and fingerprint not in ("", stages.fingerprint_of(_counted(self.contents(place)))):
            wrong = [f"{place.name} was made anew, with other content, since this was made from it"]
        step = str(document.get("step", "evaluate" if "stages" in document else ""))
        yield Verified(depth, name, step, str(place), _state(wrong), fingerprint, wrong)
        if (key := os.path.realpath(place)) not in self.followed:
            self.followed.add(key)
            yield from self.inputs(depth + 1, place, document)

    def document(self, place: Path) -> tuple[dict[str, Any], list[str]]:
        """What a stage's manifest, or a file with a checksum, says, and what is not as it was."""
        return of_one_generation(place, lambda: self._document(place))

    def _document(self, place: Path) -> tuple[dict[str, Any], list[str]]:
        file = place if place.is_file() else place / stages.MANIFEST
        try:
            document = stages.read_exactly(file, _AGAIN)
            if file == place:
                return document, []
            manifest, found = stages.read_manifest(place), self.contents(place, len(_table(document, "files")))
        except BadInput as e:
            return {}, [f"{file.name} is {e.message}"]
        except FileNotFoundError:
            return {}, ["it was removed while this looked"]
        assert manifest is not None  # it was read just now
        return document, [
            *(f"{name} is missing" for name in manifest.files if name not in found
              and not name.startswith(stages.REMOVABLE)),
            *(f"{name} has other content than the step wrote" for name, content in manifest.hashes.items()
              if found.get(name, content) != content),
            *(f"{told(name)} is in it, and the step did not write it" for name in found if name not in manifest.files
              and name != stages.MANIFEST and name.rpartition("/")[2] not in stages.OF_DESKTOPS)]

    def inputs(self, depth: int, target: Path, document: Mapping[str, Any]) -> Iterator[Verified]:
        """What a manifest, or the part of one that another has, names as inputs."""
        known, origins = (_table(document, key) for key in ("inputs", "origins"))
        for name, fingerprint in known.items() if depth < DEEPEST else ():
            yield from self.input(depth, str(name), str(fingerprint), _table(origins, name), target)

    def input(self, depth: int, name: str, fingerprint: str, origin: Mapping[str, Any],
              target: Path) -> Iterator[Verified]:
        """One input: by its own manifest if it is a stage and here, else by what the result says of it."""
        place, made = self.others.get(fingerprint), _table(origin, "made")
        if place is None and isinstance(origin.get("path"), str):
            place = place_of(origin, target)
        if place is None or not place.exists():
            yield Verified(depth, name, str(made.get("step", "")), str(place or ""), Found.ELSEWHERE, fingerprint)
            yield from self.inputs(depth + 1, place or target, made)
        elif (place / stages.MANIFEST).is_file():
            yield from self.result(depth, name, place, fingerprint)
        else:
            wrong = self.differences(place, fingerprint, _table(origin, "files"))
            yield Verified(depth, name, "", str(place), _state(wrong), fingerprint, wrong)

    def differences(self, place: Path, fingerprint: str, files: Mapping[str, Any]) -> list[str]:
        """Each file that is not as it was when something was made from it; of a manifest without files, the whole."""
        try:
            found = _counted(self.contents(place, len(files) or MOST_UNTOLD))
        except BadInput as e:
            return [f"{place.name}: {e.message}"]
        if stages.fingerprint_of(found) == fingerprint:
            return []
        now = {told(name): content for name, content in found.items()}
        shown = {name: place.name if name == "." else name for name in now.keys() | files.keys()}
        return [f"{shown[name]} has other content than it had" if name in now and name in files else
                f"{shown[name]} is missing" if name in files else f"{shown[name]} is new"
                for name in sorted(shown) if now.get(name) != files.get(name)] if files else [
                f"{place.name} has other content than it had"]

    def contents(self, place: Path, expected: int = MOST_UNTOLD) -> dict[str, str]:
        """The hashes of all files of a place, which is read once, and again if another took its place.

        Raises:
            BadInput: it cannot be read, or has many more files than expected: a stranger's manifest may name any place.
        """
        key = os.path.realpath(place), generation(place)
        if key not in self.read:
            files = (name for _, _, names in os.walk(place) for name in names)  # without a fault where one goes
            if len(list(islice(files, 2 * expected + MANY))) >= 2 * expected + MANY:
                raise BadInput(f"it holds many more than {expected} files", where=place)
            self.read[key] = stages.contents(place, all_files=(place / stages.MANIFEST).is_file())
            self.task.advance(len(self.read[key]))
        return self.read[key]


def _counted(files: Mapping[str, str]) -> dict[str, str]:
    """Those that a fingerprint is of."""
    return {name: content for name, content in files.items() if stages.counts(name)}


def _table(document: Mapping[str, Any], key: Any) -> Mapping[str, Any]:
    found = document.get(key)
    return found if isinstance(found, dict) else {}


def _state(wrong: Sequence[str]) -> Found:
    return Found.CHANGED if wrong else Found.WHOLE
