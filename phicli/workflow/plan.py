"""What a step would make, from what, and whether that is there already: one judgement for commands, `run`, `status`."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from phicli.artifacts import stages
from phicli.artifacts.generations import of_one_generation
from phicli.artifacts.locks import held
from phicli.artifacts.origins import origin
from phicli.artifacts.places import check_apart, check_folder_place
from phicli.artifacts.stages import Manifest
from phicli.errors import BadInput
from phicli.progress import Progress
from phicli.resources.shortage import within_memory

LONGEST_VALUE = 12  # characters of a setting that are told

class StageResult(NamedTuple):
    """What a step gives back: the folder with its result, and what that was made from, how, and how well."""

    folder: Path
    manifest: Manifest


class State(StrEnum):
    CURRENT = "up to date"
    STALE = "stale"
    BROKEN = "broken"
    MISSING = "not made"


@dataclass(frozen=True)
class Verdict:
    """state, and the reason for it: what has changed, or which file is damaged."""

    state: State
    reason: str = ""

    @property
    def current(self) -> bool:
        return self.state is State.CURRENT


CURRENT = Verdict(State.CURRENT)


@dataclass
class Plan:
    """What a step makes (`target`, a stage folder) from which files and folders (`sources`, by name) and settings.

    apart: sources whose names begin with it are told in the manifest, and are no reason to make the result anew.
    """

    step: str
    target: Path
    sources: dict[str, Path]
    settings: dict[str, Any]
    apart: str | None = field(default=None, kw_only=True)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The sources' fingerprints when they were first asked for. Raises BadInput: one cannot be read."""
        return {name: stages.fingerprint(path) for name, path in self.sources.items()}

    def verdict(self) -> Verdict:
        """Whether the target is the whole and unchanged result of this plan."""
        return judge(self.target, self.step, self.inputs, self.settings, self.apart)

    def result(self) -> Any:
        """What says what the target is: its manifest; None where there is none. Raises BadInput: damaged."""
        return stages.read_manifest(self.target)

    def finished(self, force: bool, progress: Progress) -> Any:
        """The manifest of a result that is up to date; None where it has to be made. Says aloud which, and why.

        Raises:
            BadInput: what stands at the target is not a result of this step, and would be lost; or the target lies in
                what it is made from.
        """
        _ = self.inputs  # taken before anything is read, so that a later change is noticed
        verdict = self.verdict()
        if verdict.current and not force:
            progress.note(f"{self.target} is up to date")
            self._tidy(progress)
            return self.result()
        self.check_place()
        if self.target.exists():
            progress.note(f"{self.target} is " + ("made again: asked for" if force and verdict.current else
                                                  f"{verdict.state}: {verdict.reason}"))
        return None

    def _tidy(self, progress: Progress) -> None:
        """What a process left that was killed after it had published goes too."""
        if stages.leftovers(self.target):
            with held(self.target, progress, wait=False) as alone:
                if alone:
                    stages.settle(self.target, alone=True)

    def check_place(self) -> None:
        """Raise BadInput if a result cannot be made at the target without harm to what is there."""
        for source in self.sources.values():
            check_apart(self.target, source)
        self.check_theirs()

    def check_theirs(self) -> None:
        """Raise BadInput if what stands at the target is not a result of this step."""
        of_one_generation(self.target, self._check_theirs)

    def _check_theirs(self) -> None:
        check_folder_place(self.target)
        if not self.target.is_dir() or not any(self.target.iterdir()):
            return
        try:
            have = stages.read_manifest(self.target)
        except BadInput:
            return  # ours, damaged
        if have is None or have.step != self.step:
            what = "files that no step of phicli made" if have is None else f"the result of phicli {have.step}"
            raise BadInput(f"the folder holds {what}", where=self.target, hint="name another one, or move it away")
        if foreign := stages.foreign_file(self.target, have):
            raise BadInput(f"{foreign} is in the folder, which no step of phicli made, and would be lost",
                           where=self.target, hint="move it elsewhere; a step's folder is made anew as a whole")

    @contextlib.contextmanager
    def locked(self, force: bool, progress: Progress) -> Iterator[Any]:
        """Wait until no other process works on the target, and keep others waiting.

        Yields:
            the manifest of what has become up to date meanwhile, as `finished` does.

        Raises:
            Missing: memory ran out while the block worked. BadInput: it failed, and a source was replaced meanwhile.
        """
        with held(self.target, progress), within_memory(self.step), self._blaming_sources():
            with stages.writing(self.target):
                stages.settle(self.target, alone=True)
            done = not force and self.verdict().current
            if done:
                progress.note(f"{self.target} is up to date")
            yield self.result() if done else None

    @contextlib.contextmanager
    def _blaming_sources(self) -> Iterator[None]:
        """Where the block fails and a source is no longer what it was, tell that.

        What libraries say of files that went is anything: no such file, a damaged one, no such id at the hub.
        """
        try:
            yield
        except Exception:
            self.check_unchanged()
            raise

    @contextlib.contextmanager
    def publishing(self) -> Iterator[tuple[Path, Manifest]]:
        """A new folder to fill and its manifest, to be given its `quality`; both take the target's place at the end.

        Raises:
            Missing: no space or no permission. BadInput: a source changed meanwhile; nothing is published then.
        """
        begun = time.monotonic()
        manifest = Manifest(self.step, dict(self.inputs), self.settings)
        with stages.publishing(self.target) as fresh:
            yield fresh, manifest
            manifest.seconds = round(time.monotonic() - begun, 3)
            known = self.check_unchanged()
            manifest.origins = {name: known[name] for name in manifest.inputs if name in known}
            stages.write_manifest(fresh, manifest)
            self.check_place()  # once more: it may have been waited for, and long

    def check_unchanged(self) -> dict[str, dict[str, Any]]:
        """The origins of the result. Raises BadInput if a source is no longer what it was when the step began."""
        found = {}
        for name, path in self.sources.items():
            files = stages.contents(path)
            if stages.fingerprint_of(files) != self.inputs[name]:
                raise BadInput(f"changed while {self.step} ran", where=path, hint=f"run it again: phicli {self.step}")
            found[name] = origin(path, files, self.target)
        return found


def judge(folder: Path, step: str, inputs: Mapping[str, str], settings: Mapping[str, Any],
          apart: str | None = None) -> Verdict:
    """Whether the folder is the whole result of these inputs, settings and tool versions.

    apart: inputs and files whose names begin with it do not count; the caller judges them.
    """
    return of_one_generation(folder, lambda: _judge(folder, step, inputs, settings, apart))


def _judge(folder: Path, step: str, inputs: Mapping[str, str], settings: Mapping[str, Any],
           apart: str | None) -> Verdict:
    if not folder.is_dir():
        return Verdict(State.MISSING)
    try:
        have = stages.read_manifest(folder)
    except BadInput as e:
        return Verdict(State.BROKEN, f"{stages.MANIFEST} is {e.message}")
    if have is None or have.step != step:
        return Verdict(State.STALE, "made by something else")
    if have.files.keys() != have.hashes.keys():
        return Verdict(State.STALE, "made by an older version of phicli")
    changed = difference(vars(have), inputs, settings, apart)
    if changed:
        return Verdict(State.STALE, changed)
    wrong = stages.damage(folder, have, lambda name: not (apart and name.startswith(apart)))
    return Verdict(State.BROKEN, wrong) if wrong else CURRENT


def difference(have: Mapping[str, Any], inputs: Mapping[str, str], settings: Mapping[str, Any],
               apart: str | None = None) -> str | None:
    """What differs between these inputs, settings and tool versions and those that `have` was made with.

    Of short values of settings both are told: what was given as a flag is seen nowhere else.
    """
    for what, new in (("input", inputs), ("setting", settings), ("version of", stages.versions())):
        old = have["versions" if what == "version of" else what + "s"]
        changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)
                         and not (apart and k.startswith(apart)))
        if changed:
            names = [f"{k}{_values(old.get(k), new.get(k))}" for k in changed] if what == "setting" else changed
            return f"changed {what} {', '.join(names)}"
    return None


def _values(old: Any, new: Any) -> str:
    told = [json.dumps(value) if isinstance(value, int | float | str) else "" for value in (old, new)]
    return " ({}, now {})".format(*told) if all(0 < len(one) <= LONGEST_VALUE for one in told) else ""
