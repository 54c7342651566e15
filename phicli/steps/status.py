"""The stages under a root, each judged as its own command would judge it. Imports no torch."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from phicli.artifacts import hashing, stages
from phicli.artifacts.locks import holder
from phicli.artifacts.names import CHECKPOINT_FILES, EVALUATION, FINETUNED, ONNX_FOLDER, SEARCH, checkpoint_place
from phicli.artifacts.origins import place_of, rows_of
from phicli.artifacts.reading import read_json
from phicli.config.layers import Config, Settings
from phicli.config.steps import EvaluateConfig, FinetuneConfig, OptimizeConfig, QuantizeConfig
from phicli.errors import BadInput, Missing, PhicliError
from phicli.libraries import user_is_offline
from phicli.progress import SILENT, Progress
from phicli.steps.lab import Lab
from phicli.units import since
from phicli.workflow.plan import CURRENT, Plan, State, Verdict

DONE = "done"  # of a search
NOT_HERE = "is not on this machine yet"  # of a model, how the message ends


@dataclass(frozen=True)
class StageStatus:
    """One stage. state: a `State`; why: its reason, or who works on it now; made: date; bytes: size on disk."""

    step: str
    state: str
    why: str
    place: str
    made: str = ""
    bytes: int = 0


def stage_statuses(settings: Settings, flags: dict[str, Any], reread: bool = False,
                   asked: bool = True) -> list[StageStatus]:
    """Data, quantize, finetune (every adapter there is), optimize and evaluate, as `phicli run` would find them.

    Args:
        flags: as those of `run_lab`. reread: read every file, whatever is remembered of it.
        asked: `phicli run` with these flags is asked for. Else an adapter of the usual name that is not there counts
            as missing only where there is no other.
    """
    with hashing.reading_all() if reread else contextlib.nullcontext():
        return list(_Stages(Lab(settings, flags, SILENT), asked).statuses())


class _Stages:
    def __init__(self, lab: Lab, asked: bool):
        self.lab, self.root, self.asked = lab, lab.root, asked
        self.outdated: dict[Path, str] = {}  # targets that are not up to date -> name of the step

    def statuses(self) -> Iterator[StageStatus]:
        from phicli.evaluation.plan import plan_evaluate
        from phicli.export.plan import plan_optimize
        from phicli.steps.finetune import plan_finetune
        from phicli.steps.quantize import plan_quantize

        quantize, finetune = self.lab.config(QuantizeConfig), self.lab.config(FinetuneConfig)
        adapter, base = self.root / FINETUNED / finetune.name, self.root / quantize.algorithm
        others = sorted(place.parent for place in self.root.glob(f"{FINETUNED}/[!.]*/{stages.MANIFEST}")
                        if place.parent != adapter)
        named = finetune.name != FinetuneConfig.name
        begun = adapter.exists() or checkpoint_place(adapter).exists()
        own = self.asked or named or begun or not others
        yield from self.all_data(finetune, own, () if self.asked else others)
        yield self.status("quantize", base, lambda: plan_quantize(as_local(quantize)))
        if own:
            yield self.status("finetune", adapter, lambda: plan_finetune(as_local(finetune)))
        for folder in others:
            yield self.status("finetune", folder, partial(_as_it_was, folder, base))
        optimize, evaluate = self.lab.config(OptimizeConfig), self.lab.config(EvaluateConfig)
        yield self.status("optimize", self.root / ONNX_FOLDER, lambda: plan_optimize(as_local(optimize)))
        if not self.lab.own_data() or (self.root / EVALUATION).exists():
            yield self.status("evaluate", self.root / EVALUATION, lambda: plan_evaluate(as_local(evaluate)))
        if (self.root / SEARCH).exists():
            yield _searched(self.root / SEARCH)

    def all_data(self, config: FinetuneConfig, own: bool, others: Sequence[Path]) -> Iterator[StageStatus]:
        """The rows of the settings, if they are for an adapter there or were given, and those of the other adapters."""
        read = [config] if own or config.data != FinetuneConfig.data else []
        for folder in others:
            with contextlib.suppress(PhicliError, KeyError, TypeError, ValueError, OSError):
                read.append(_rows_as_they_were(folder, config))
        told = set()
        for each in read or [config]:
            if (where := tuple(str(Path(name).resolve()) for name in each.data)) not in told:
                told.add(where)
                yield self.data(each)

    def data(self, config: FinetuneConfig) -> StageStatus:
        from phicli.dataset.sources import local_path
        from phicli.dataset.table import Table
        from phicli.hub.datasets import find_sources

        where = ", ".join(config.data)
        try:
            sources = find_sources(config.data, local=True)
            rows = Table(sources, config)
        except PhicliError as e:
            there = any(map(local_path, config.data))
            return StageStatus("data", State.BROKEN if there else State.MISSING, str(e), where)
        size = sum(Path(source.path).stat().st_size for source in sources)
        return StageStatus("data", CURRENT.state, f"{len(rows)} rows", where, bytes=size)

    def status(self, step: str, target: Path, make_plan: Callable[[], Plan]) -> StageStatus:
        """A stage's own verdict; one that is up to date but made from what will be made again is stale."""
        waits = list(self.outdated.values())
        try:
            plan = make_plan()
            verdict = plan.verdict()
            waits = [name for place, name in self.outdated.items() if place in plan.sources.values()
                     or step == "evaluate" or (step == "optimize" and name.startswith("finetune"))]
        except PhicliError as e:
            state = State.STALE if target.exists() else State.MISSING
            verdict = Verdict(state, f"after {waits[0]}" if waits else str(e))
        if verdict.current and waits:
            verdict = Verdict(State.STALE, f"after {waits[0]}")
        if not verdict.current:
            self.outdated[target] = f"{step} {target.name}" if step == "finetune" else step
        now, kept = holder(target), _interrupted(target) if step == "finetune" else None
        made, size = _about(target)
        why = f"{now} works on it" if now else "; ".join(filter(None, (verdict.reason, kept)))
        return StageStatus(step, verdict.state, why, str(target), made, size)


def as_local(config: Config, progress: Progress = SILENT) -> Config:
    """The settings with models by their folders, and data sets of the hub by their files: nothing is fetched to tell a
    state. Raises Missing; see NOT_HERE."""
    from phicli.dataset.sources import local_path, split_weight
    from phicli.hub.datasets import find_sources
    from phicli.hub.fetching import offline
    from phicli.hub.models import local_tokenizer

    found: dict[str, Any] = {}
    for name in ("data", "own_rows"):
        if data := getattr(config, name, None):
            there = {entry for entry in data if local_path(split_weight(entry)[0])}  # a folder has further splits
            found[name] = [one for entry in data for one in ([entry] if entry in there else [
                f"{source.path}:{source.weight:g}" if source.weight != 1 else str(source.path)
                for source in find_sources([entry], progress=progress, local=True)])]
    alone = getattr(config, "base", None) and getattr(config, "method", None) != "loftq"  # asks nothing of the model
    for name in ("base",) if alone else ("model", "base"):
        if reference := getattr(config, name, None):
            folder = local_tokenizer(reference)
            if folder is None and user_is_offline():
                raise offline(reference)
            if folder is None:
                raise Missing(f"{reference} {NOT_HERE}")
            found[name] = str(folder)
    return config.but(**found)


def _searched(file: Path) -> StageStatus:
    """What a search found; whether it would go on after these trials, its own flags say."""
    made, size = _about(file)
    try:
        document = stages.read_sealed(file, "") or {}
        why = f"{len(document['trials'])} trials" + (f", the best: {document['path']}" if document["path"] else "")
    except (PhicliError, KeyError, TypeError) as e:
        return StageStatus("search", State.BROKEN, str(e), str(file), made, size)
    return StageStatus("search", DONE, f"{holder(file.parent)} works on it" if holder(file.parent) else why,
                       str(file), made, size)


def _rows_as_they_were(folder: Path, config: FinetuneConfig) -> FinetuneConfig:
    """Settings with the files of rows of an adapter, and how they were read. Raises as `rows_of`; PhicliError."""
    have = stages.read_manifest(folder)
    assert have is not None
    files = [_from_here(place) + (f":{weight:g}" if weight != 1 else "") for place, weight in rows_of(have, folder)]
    names = ("format", "columns", "text_template")
    return config.but(data=files, **{name: have.settings.get(name, getattr(FinetuneConfig, name)) for name in names})


def _from_here(place: Path) -> str:
    """A file as it is called from the working folder, if it lies in it."""
    return str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)


def _as_it_was(folder: Path, base: Path) -> Plan:
    """The plan of an adapter with another name than the settings': its own settings and rows, on the base that is
    there. Rows that are not here any more count as they were."""
    have = stages.read_manifest(folder)
    assert have is not None
    plan = Plan("finetune", folder, {"base": base}, have.settings)
    plan.inputs = {**have.inputs, **_read_again(folder, have), "base": stages.fingerprint(base)}
    return plan


def _read_again(folder: Path, have: stages.Manifest) -> dict[str, str]:
    """The fingerprints of the files that a stage was made from, as they are now; of those that are there."""
    found = {}
    for name in have.inputs:
        with contextlib.suppress(BadInput, KeyError, TypeError, ValueError, OSError):
            if (place := place_of(have.origins[name], folder)).is_file():
                found[name] = stages.fingerprint(place)
    return found


def _interrupted(adapter: Path) -> str | None:
    """What an interrupted training of an adapter has left to go on with; None where there is nothing."""
    file = checkpoint_place(adapter) / CHECKPOINT_FILES[0]
    try:
        document, age = read_json(file), time.time() - file.stat().st_mtime
        step, most = int(document["state"]["step"]), document["key"]["settings"]["max_steps"]
    except (OSError, PhicliError, ValueError, KeyError, TypeError):
        return None
    return f"interrupted, {step}{f' of {int(most)}' if most else ''} steps are kept, from {since(age)}"


def _about(target: Path) -> tuple[str, int]:
    """When the stage was made, and its size in bytes."""
    try:
        if target.is_dir():
            have = stages.read_manifest(target)
            return (have.created, have.bytes) if have else ("", 0)
        document = stages.read_sealed(target, "") or {}
        return str(document.get("created", "")), target.stat().st_size if document else 0
    except PhicliError:
        return "", 0
