"""What `evaluate` would measure, and whether that has been measured already."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phicli.artifacts.names import EVALUATION
from phicli.artifacts.places import check_file_place
from phicli.artifacts.reading import read_json
from phicli.artifacts.stages import check_whole, read_sealed
from phicli.config.steps import EvaluateConfig
from phicli.errors import BadInput, Missing
from phicli.evaluation.named import name_stages
from phicli.evaluation.stages import Stage, find_stages
from phicli.hub.datasets import data_inputs, held_out_sources
from phicli.progress import SILENT, Progress
from phicli.workflow.plan import CURRENT, Plan, State, Verdict, difference

WHAT = ("algorithm", "stages")  # settings that choose the stages, which are among the inputs


@dataclass
class EvaluationPlan(Plan):
    """Its target is a file, which holds the figures and what they were measured on.

    files: of held-out rows. reference: name of the stage that others are compared with. kept: whether the result is
    written at all.
    """

    stages: Sequence[Stage] = field(default_factory=tuple)
    files: Sequence[Path] = ()
    reference: str = "original"
    kept: bool = True

    def result(self) -> dict[str, Any] | None:
        """The document that is there. Raises BadInput: damaged."""
        return read_sealed(self.target, "phicli evaluate --force")

    def check_theirs(self) -> None:
        check_file_place(self.target)
        try:
            have = read_json(self.target)
        except (FileNotFoundError, BadInput):
            return  # nothing there, or ours, damaged
        if not isinstance(have, dict) or "stages" not in have:
            raise BadInput("the file there is no result of phicli evaluate", where=self.target,
                           hint="move it away, or name another --root")

    def verdict(self) -> Verdict:
        try:
            have = self.result()
        except BadInput as e:
            return Verdict(State.BROKEN, f"{self.target.name} is {e.message}")
        if have is None:
            return Verdict(State.MISSING)
        inputs = self.inputs  # of which one that cannot be read is no fault of the result
        try:
            changed = difference(have, inputs, self.settings)
        except (KeyError, AttributeError):
            return Verdict(State.STALE, "made by an older version of phicli")
        return Verdict(State.STALE, changed) if changed else CURRENT


def plan_evaluate(config: EvaluateConfig, progress: Progress = SILENT) -> EvaluationPlan:
    """What `evaluate` would measure of the same settings.

    Raises:
        Missing: nothing made under root yet. BadInput: no such adapter or stage; a damaged stage.
    """
    root = config.root_folder
    data = data_inputs(held_out_sources(config.eval_data, progress), "eval_data")
    stages = _stages(config, progress)
    present = [stage for stage in stages if not stage.missing]
    sources = {stage.name: stage.adapter_path or stage.folder for stage in present} | data
    sources |= config.row_sources() | {name: Path(name) for name in config.tasks if Path(name).is_file()}
    for folder in dict.fromkeys(path for path in sources.values() if path.is_dir()):
        check_whole(folder)
    settings = {name: value for name, value in config.recorded().items() if name not in WHAT} | {
        "missing": [stage.name for stage in stages if stage.missing]}
    if config.stages:  # others are compared with the first one
        settings["stages"] = [stage.name for stage in stages]
    return EvaluationPlan("evaluate", Path(config.output or root / EVALUATION), sources, settings, stages,
                          list(data.values()), stages[0].name, bool(config.output or not config.stages))


def _stages(config: EvaluateConfig, progress: Progress) -> list[Stage]:
    """Those that are named, else all under the root."""
    if config.stages and all(Path(name.partition("+")[0]).exists() for name in config.stages):
        return name_stages(config.stages, [], config.root_folder, progress)  # the original need not be fetched
    try:
        found = find_stages(config.root_folder, config.model, config.algorithm, config.adapter, progress)
    except Missing:
        if not config.stages:
            raise
        found = []
    return name_stages(config.stages, found, config.root_folder, progress) if config.stages else found
