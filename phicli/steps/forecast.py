"""What steps would do, and why, with how much time and space; nothing is made. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.artifacts import stages
from phicli.artifacts.names import EVALUATION, FINETUNED, ONNX_FOLDER
from phicli.config.layers import Settings
from phicli.config.steps import (
    DEFAULT_RANK,
    EvaluateConfig,
    FinetuneConfig,
    InspectConfig,
    OptimizeConfig,
    QuantizeConfig,
)
from phicli.doctor.needs import longest_row
from phicli.errors import Missing, PhicliError
from phicli.hardware.driver import expected_device, gpu_memory_free
from phicli.progress import SILENT, Progress
from phicli.resources import Estimate, announce, size_of_model, step_estimates
from phicli.resources.times import products_a_second, seconds_on_cpu
from phicli.steps.lab import NO_ROWS, STEPS, Lab, check_range
from phicli.steps.status import NOT_HERE, as_local, stage_statuses
from phicli.training.recipe import DEFAULT_STEPS
from phicli.workflow.plan import Plan, State

ANNOUNCED = ("quantize", "finetune", "optimize")  # the steps that say themselves what they need
WORK = {"quantize": ("samples", "seq_len", "refine", "generated"),  # settings that a step's time depends on
        "finetune": ("max_steps", "epochs", "batch_size", "lora_r")}
ALWAYS = ("inspect", "chat")  # the steps that keep nothing which could be up to date


@dataclass(frozen=True)
class Forecast:
    """What a step would do. action: "run" or "nothing"; seconds: about, or of the last time; None where not known.

    memory, gpu, disk: bytes, None where the model's size is not known.
    """

    step: str
    action: str
    why: str
    place: str
    seconds: float | None = None
    last_time: bool = False
    memory: float | None = None
    gpu: float | None = None
    disk: float | None = None


def forecast_step(settings: Settings, flags: dict[str, Any], step: str, progress: Progress = SILENT) -> Forecast:
    """What one step would do with these settings. Raises what the step raises before it begins to work."""
    lab = Lab(settings, flags, progress)
    place = _places(lab).get(step, Path())
    if step in ALWAYS:
        from phicli.steps.inspect import inspected_sources

        config = lab.config(InspectConfig)
        inspected_sources(config, progress)
        return _Forecasts(lab).one(step, True, "looks at rows, keeps nothing", ", ".join(config.data))
    try:
        plan = _plan(lab, step)
    except Missing as e:
        if not e.message.endswith(NOT_HERE):
            raise
        return _Forecasts(lab).one(step, True, f"{e.message}, and is fetched first", place)
    verdict = plan.verdict()
    if not verdict.current:
        plan.check_place()
    runs, why = bool(flags.get("force")) or not verdict.current, verdict.reason or str(verdict.state)
    return _Forecasts(lab).one(step, runs, "asked for" if verdict.current and runs else why, plan.target)


def forecast_lab(settings: Settings, flags: dict[str, Any], first: str | None, last: str | None,
                 progress: Progress = SILENT) -> Sequence[Forecast]:
    """What `run_lab` would do, step by step. Raises what it raises before its first step."""
    begin, end = check_range(first, last)
    lab = Lab(settings, flags, progress)
    lab.check_model(end)
    found = {(one.step, one.place): one for one in stage_statuses(settings, flags)}
    forecasts, places = _Forecasts(lab), _places(lab)
    made = []
    for number, step in enumerate(STEPS[: end + 1]):
        if step in ALWAYS:
            made.append(forecasts.one(step, True, "always", ""))
            continue
        if step == "evaluate" and lab.own_data():
            made.append(forecasts.one(step, False, f"left out: {NO_ROWS}", ""))
            continue
        one = found[step, str(places[step])]
        again = flags.get("force") or number >= begin
        runs = again or one.state != State.CURRENT
        made.append(forecasts.one(step, runs, "asked for" if again else one.why or one.state, places[step]))
    return made


def _places(lab: Lab) -> dict[str, Path]:
    return {"quantize": lab.root / lab.config(QuantizeConfig).algorithm,
            "finetune": lab.root / FINETUNED / lab.config(FinetuneConfig).name,
            "optimize": lab.root / ONNX_FOLDER, "evaluate": lab.root / EVALUATION}


def _plan(lab: Lab, step: str) -> Plan:
    from phicli.evaluation.plan import plan_evaluate
    from phicli.export.plan import plan_optimize
    from phicli.steps.finetune import plan_finetune
    from phicli.steps.quantize import plan_quantize

    plans: Mapping[str, Callable[[], Plan]] = {
        "quantize": lambda: plan_quantize(as_local(lab.config(QuantizeConfig), lab.progress), lab.progress),
        "finetune": lambda: plan_finetune(as_local(lab.config(FinetuneConfig), lab.progress), lab.progress),
        "optimize": lambda: plan_optimize(as_local(lab.config(OptimizeConfig), lab.progress), lab.progress),
        "evaluate": lambda: plan_evaluate(as_local(lab.config(EvaluateConfig), lab.progress), lab.progress),
    }
    return plans[step]()


class _Forecasts:
    """Forecasts for one model: its size and the machine's speed are asked for once. Warns as the steps would."""

    def __init__(self, lab: Lab):
        self.progress = lab.progress
        quantize = self.quantize = lab.config(QuantizeConfig)
        self.finetune = lab.config(FinetuneConfig)
        self.rank = self.finetune.lora_r or DEFAULT_RANK
        self.size = size_of_model(self.finetune.model)  # of a base that is named, the one that it was made from
        gpu = expected_device(quantize.device) == "cuda"
        self.gpu_free = gpu_memory_free() if gpu else 0
        self.estimates: Mapping[str, Estimate] = {}
        self.rate = None if gpu or not self.size else products_a_second()
        if self.size:
            base = self.finetune.base or lab.config(OptimizeConfig).base
            self.estimates = step_estimates(self.size, "cuda" if gpu else "cpu", lab.config,
                                            longest_row(self.finetune), size_of_model(base) if base else None)

    def one(self, step: str, runs: bool, why: str, place: str | Path) -> Forecast:
        """The forecast of one step. why: it runs, or not."""
        if not runs:
            return Forecast(step, "nothing", why, str(place))
        seconds, last_time = self._seconds(step, Path(place))
        need = self.estimates.get(step)
        if need and step in ANNOUNCED and self.gpu_free is not None:  # else it will be done elsewhere
            announce(step, need, Path(place), self.progress, self.gpu_free)
        return Forecast(step, "run", why, str(place), seconds, last_time, *(
            (need.memory, need.gpu, need.disk) if need else ()))

    def _seconds(self, step: str, place: Path) -> tuple[float | None, bool]:
        """Of the result that is there, if it was as much work, else an estimate."""
        try:
            have = stages.read_manifest(place) if place.is_dir() else None
        except PhicliError:
            have = None
        if have and have.step == step and have.seconds and self._as_much(step, have.settings):
            return have.seconds, True
        if not self.rate or not self.size or step in ALWAYS or (step == "finetune" and self.finetune.epochs):
            return None, False
        rows = (self.finetune.max_steps or DEFAULT_STEPS) * self.finetune.batch_size
        tokens = self.quantize.samples * self.quantize.seq_len
        return seconds_on_cpu(step, self.size, self.rate, tokens, rows, self.rank), False

    def _as_much(self, step: str, then: Mapping[str, Any]) -> bool:
        """Whether a result's settings made as much work as the present ones."""
        steps = DEFAULT_STEPS if self.finetune.epochs is None else None
        now = {"quantize": self.quantize.recorded(),
               "finetune": self.finetune.recorded() | {"max_steps": self.finetune.max_steps or steps,
                                                       "lora_r": self.rank}}
        return all(then.get(name) == now[step][name] for name in WORK.get(step, ()))
