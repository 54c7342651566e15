"""One trial of a search: the chain of steps with its settings, and what came out."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.config.setting import StepConfig
from phicli.config.steps import EvaluateConfig, FinetuneConfig, OptimizeConfig, QuantizeConfig
from phicli.errors import BadInput, UsageError
from phicli.progress import Progress, Task
from phicli.steps.choosing import Limits
from phicli.workflow.plan import StageResult

AXES: Mapping[str, type[StepConfig]] = {
    "algorithm": QuantizeConfig, "group_size": QuantizeConfig, "head": OptimizeConfig, "embeddings": OptimizeConfig,
    "kv_cache": OptimizeConfig, "lora_r": FinetuneConfig, "learning_rate": FinetuneConfig}  # setting -> whose it is
TRIAL = "trial"  # the root of the present trial
ANSWERS, LONGEST = 3, 64  # questions whose answers' speed is measured, and tokens of each


@dataclass(frozen=True)
class Steps:
    """The settings of each step that a search does not change."""

    quantize: QuantizeConfig
    finetune: FinetuneConfig
    optimize: OptimizeConfig
    evaluate: EvaluateConfig


class Trials:
    """Runs trials in a folder, where quantized models and adapters are kept for those that share them.

    adapter: whether each trial trains one, or takes one that an earlier trial has trained.
    """

    def __init__(self, steps: Steps, folder: Path, adapter: bool, progress: Progress):
        self.steps, self.folder, self.adapter, self.progress = steps, folder, adapter, _WithoutNotes(progress)

    def run(self, settings: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
        """What came out: size in bytes, speed in tokens a second, kl and perplexity, seconds; None where not measured.

        What costs time is not measured of a trial that is outside the limits already. "outside": of which, or why
        nothing can be made with these settings.
        """
        begun, found = time.monotonic(), dict[str, Any](dict.fromkeys(("size", "speed", "kl", "perplexity")))
        try:
            built = self.build(settings, self.folder / TRIAL)
        except (UsageError, BadInput) as e:
            return {**found, "seconds": time.monotonic() - begun, "outside": e.message}
        found["size"] = built.manifest.bytes
        ways: tuple[Callable[[Path], dict[str, Any]], ...] = (self._speed, self._quality)
        for measure in ways:
            if not limits.exceeded(found):
                found |= measure(built.folder)
        return {**found, "seconds": time.monotonic() - begun, "outside": ", ".join(limits.exceeded(found))}

    def build(self, settings: Mapping[str, Any], root: Path) -> StageResult:
        """Make the ONNX model of these settings under a root, from what is there of it."""
        from phicli.steps.finetune import finetune
        from phicli.steps.optimize import optimize
        from phicli.steps.quantize import quantize

        quantized = _of(self.steps.quantize, settings)
        shared = str(self.folder / f"base-{quantized.algorithm}-{quantized.group_size or 'auto'}")
        base = quantize(quantized.but(root=shared, output=None), self.progress).folder
        adapters: tuple[str, ...] = ()
        if self.adapter:
            tuned = _of(self.steps.finetune, settings)
            name = f"r{tuned.lora_r or 'auto'}-lr{tuned.learning_rate or 'auto'}"
            trained = finetune(tuned.but(root=shared, base=str(base), name=name, publish_anyway=True), self.progress)
            adapters = (f"{self.steps.finetune.name}={trained.folder}",)
        optimized = _of(self.steps.optimize, settings)
        return optimize(optimized.but(root=str(root), base=str(base), adapters=adapters, output=None),
                        self.progress)

    def _speed(self, built: Path) -> dict[str, float | None]:
        """The median over a few answers."""
        from phicli.inference.conversation import Conversation
        from phicli.inference.session import Session

        config = self.steps.evaluate
        with Session(built, config.device, config.kernels) as session:
            talk = Conversation(session, adapter=self.steps.finetune.name if self.adapter else None,
                                max_new_tokens=LONGEST)
            rates = [talk.ask("Tell me about a place that is worth a journey.").decode_rate for _ in range(ANSWERS)]
        return {"speed": statistics.median(known) if (known := [rate for rate in rates if rate]) else None}

    def _quality(self, built: Path) -> dict[str, float | None]:
        """KL to the original without an adapter, and perplexity with it, if there is one."""
        from phicli.steps.evaluate import evaluate

        document = evaluate(self.steps.evaluate.but(root=str(built.parent), adapter=None), self.progress)
        measured = {stage["adapter"]: stage for stage in document["stages"] if stage["onnx"] and not stage["missing"]}
        tuned = measured[self.steps.finetune.name if self.adapter else None]
        return {"kl": measured[None]["kl"], "perplexity": tuned["perplexity"]}


def _of(config: Any, settings: Mapping[str, Any]) -> Any:
    """A step's settings with those of the trial that are its."""
    return config.but(**{name: value for name, value in settings.items() if isinstance(config, AXES[name])})


class _WithoutNotes:
    """The progress of steps that many trials go through: what each says of its result would bury the trials' own."""

    def __init__(self, progress: Progress):
        self.warn, self._progress = progress.warn, progress

    def task(self, title: str, total: float | None = None, unit: str = "") -> AbstractContextManager[Task]:
        return self._progress.task(title, total, unit)

    def note(self, text: str) -> None:
        pass
