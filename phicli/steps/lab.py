"""The whole lab in order. Each step is the library function behind its own command, with that command's settings."""

import difflib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.artifacts.names import EVALUATION, FINETUNED, ONNX_FOLDER
from phicli.artifacts.stages import MANIFEST, Manifest
from phicli.config.commands import ChatConfig
from phicli.config.layers import Config, Settings
from phicli.config.setting import StepConfig
from phicli.config.shared import DATA, EVAL_DATA
from phicli.config.steps import EvaluateConfig, FinetuneConfig, InspectConfig, OptimizeConfig, QuantizeConfig
from phicli.errors import UsageError
from phicli.progress import Progress
from phicli.steps import telling
from phicli.training.defaults import WITHOUT_SLOTS, check_name
from phicli.units import duration
from phicli.workflow.plan import StageResult

CONFIGS: tuple[type[StepConfig], ...] = (
    InspectConfig, QuantizeConfig, FinetuneConfig, OptimizeConfig, EvaluateConfig, ChatConfig)
STEPS = ("inspect", "quantize", "finetune", "optimize", "evaluate", "chat")
NO_ROWS = "the lab's held-out rows say nothing about other data; --eval-data FILE names some that do"


@dataclass(frozen=True)
class Step:
    """What one step did. state: "made", "up to date" or "left out"; gave: its most telling figures, or why; place: file
    or folder."""

    name: str
    state: str
    seconds: float
    gave: str
    place: str


def run_lab(settings: Settings, flags: dict[str, Any], prompt: str | None, progress: Progress,
            first: str | None = None, last: str | None = None) -> Iterator[Step]:
    """Inspect, quantize, finetune, optimize, evaluate and chat, each with the settings its own command would have.
    Of data that are not the lab's no rows are known to evaluate on, unless eval_data names them.

    Args:
        flags: what the user gave; a step takes those that it knows.
        prompt: question for the chat; None takes the first held-out row's, or the first of data that are not the lab's.
        first: step from which on all is made again. last: step to end with. Both of STEPS.

    Yields:
        one Step after the other, as soon as it is done.

    Raises:
        UsageError: no such step, or the last before the first; data from stdin. What steps raise; those before stay.
    """
    begin, end = check_range(first, last)
    for kind in CONFIGS[: end + 1]:  # what is out of range in a late step ends the run before the first one
        settings.resolve(kind, flags)
    check_name(settings.resolve(FinetuneConfig, flags).name)
    if end and "-" in settings.resolve(FinetuneConfig, flags).data:
        raise UsageError("several steps read the data, and stdin can be read once", where="--data -",
                         hint="a file, or step by step: phicli finetune --data -")
    Lab(settings, flags, progress).check_model(end)
    for i, name in enumerate(STEPS[: end + 1]):
        lab = Lab(settings, {**flags, "force": flags.get("force") or i >= begin}, progress)
        yield lab.chat(prompt) if name == "chat" else getattr(lab, name)()


def check_range(first: str | None, last: str | None) -> tuple[int, int]:
    """The numbers of the step from which on all is made again, and of the last one. Raises UsageError as `run_lab`."""
    begin, end = _number("--from", first, len(STEPS)), _number("--until", last, len(STEPS) - 1)
    if first and begin > end:
        raise UsageError(f"--from {first} comes after --until {last}", hint=f"the order: {', '.join(STEPS)}")
    return begin, end


def _number(option: str, step: str | None, default: int) -> int:
    if step is not None and step not in STEPS:
        near = difflib.get_close_matches(step, STEPS, 1)
        raise UsageError(f"no step '{step}'; there are: {', '.join(STEPS)}", where=option,
                         hint=f"did you mean '{near[0]}'?" if near else None)
    return default if step is None else STEPS.index(step)


class Lab:
    """The steps with the settings that flags and the layers below give them."""

    def __init__(self, settings: Settings, flags: dict[str, Any], progress: Progress):
        self.settings, self.flags, self.progress = settings, flags, progress
        self.root = self.config(QuantizeConfig).root_folder

    def config(self, kind: type[Config]) -> Config:
        """A step's settings. The flag --eval-data is evaluate's: what judges an adapter does not choose it as well."""
        flags = self.flags if kind is not FinetuneConfig else {k: v for k, v in self.flags.items() if k != "eval_data"}
        return self.settings.resolve(kind, flags)

    def check_model(self, last: int) -> None:
        """Raise BadInput before the first step where the model is here and quantize, still to come, would refuse it."""
        from phicli.hub.models import check_not_quantized, local_tokenizer, read_config

        model = self.config(QuantizeConfig).model
        folder = local_tokenizer(model) if last >= STEPS.index("quantize") else None
        if folder:
            check_not_quantized(read_config(folder), model)

    def staged(self, name: str, folder: Path, run: Callable[[], StageResult],
               gave: Callable[[Path, Manifest], str]) -> Step:
        """Run a step that publishes a folder with a manifest."""
        before, begun = _stamp(folder / MANIFEST), time.monotonic()
        folder, manifest = run()
        state = "up to date" if _stamp(folder / MANIFEST) == before else "made"
        return Step(name, state, time.monotonic() - begun, gave(folder, manifest), str(folder))

    def inspect(self) -> Step:
        from phicli.steps.inspect import inspect_file

        begun = time.monotonic()
        report = inspect_file(self.config(InspectConfig).but(rows=0), self.progress)
        counts = Counter[str]()
        for warning in report["warnings"]:  # one for each field
            counts[warning["code"]] += warning["count"]
        found = ", ".join(f"{code} ({count})" for code, count in counts.items()) or "nothing wrong"
        return Step("inspect", "made", time.monotonic() - begun, f"{report['rows']} rows, {found}", report["file"])

    def quantize(self) -> Step:
        from phicli.steps.quantize import own, quantize

        config, data = self.config(QuantizeConfig), self.config(FinetuneConfig).data
        if own(config) and not config.own_rows and data != DATA and "-" not in data:
            config = config.but(own_rows=data)  # no reason to make it anew: adapters of other data share the result
        if not own(config):
            config = config.but(gpus="1")  # finetune's alone
        return self.staged("quantize", self.root / config.algorithm, lambda: quantize(config, self.progress),
                           telling.quantized)

    def finetune(self) -> Step:
        from phicli.steps.finetune import finetune

        config = self.config(FinetuneConfig)
        place = self.root / FINETUNED / config.name
        return self.staged("finetune", place, lambda: finetune(config, self.progress),
                           lambda _, manifest: telling.trained(manifest.quality))

    def optimize(self) -> Step:
        from phicli.steps.optimize import optimize

        config, folder = self.config(OptimizeConfig), self.root / ONNX_FOLDER
        if self.without_slot and not config.merge:
            config, folder = config.but(merge=self.without_slot), self.root / f"{ONNX_FOLDER}-{self.without_slot}"
        return self.staged("optimize", folder, lambda: optimize(config, self.progress), telling.built)

    def evaluate(self) -> Step:
        from phicli.steps.evaluate import evaluate

        place = self.root / EVALUATION
        if self.own_data():
            return Step("evaluate", "left out", 0.0, NO_ROWS, "")
        before, begun = _stamp(place), time.monotonic()
        document = evaluate(self.config(EvaluateConfig), self.progress)
        state = "up to date" if _stamp(place) == before else "made"
        return Step("evaluate", state, time.monotonic() - begun, telling.judged(document["stages"]), str(place))

    def chat(self, prompt: str | None) -> Step:
        from phicli.inference.conversation import Conversation
        from phicli.inference.session import Session
        from phicli.text.layout import template_options

        chat, merged = self.config(ChatConfig), self.without_slot
        adapter = None if merged else chat.adapter or self.config(FinetuneConfig).name
        begun = time.monotonic()
        question = prompt or self.first_question()
        with Session(self.root / (f"{ONNX_FOLDER}-{merged}" if merged else ONNX_FOLDER), chat.runs_on, chat.kernels,
                     chat_template_kwargs=template_options(chat.chat_template_kwargs)) as session:
            talk = Conversation(session, adapter=adapter, system=chat.system, max_new_tokens=chat.max_new_tokens,
                                sampling=session.sampling.settled(chat, sample=False), stop=chat.stop)
            answer = talk.ask(question)
        rate = f", {answer.decode_rate:.0f} tokens/s" if answer.decode_rate else ""
        self.progress.note(f"{adapter or merged}, asked: {question}\n  {answer.text}")
        return Step("chat", "made", time.monotonic() - begun,
                    f"first token after {duration(answer.first_token_seconds)}{rate}",
                    f"adapter {adapter}" if adapter else f"{merged}, in the weights")

    @property
    def without_slot(self) -> str | None:
        """Name of the adapter, if it is of a kind that goes into the weights as no slot holds it."""
        config = self.config(FinetuneConfig)
        return config.name if config.method in WITHOUT_SLOTS else None

    def own_data(self) -> bool:
        """Whether data to train on were named, but no held-out ones."""
        return self.config(FinetuneConfig).data != DATA and self.config(EvaluateConfig).eval_data == EVAL_DATA

    def first_question(self) -> str:
        """The first question of the first held-out row, or of the first row of data that are not the lab's."""
        from phicli.dataset import load_rows
        from phicli.dataset.encoding import row_parser
        from phicli.dataset.understood import question
        from phicli.hub.datasets import find_sources, held_out_sources

        config = self.config(EvaluateConfig)
        sources = (find_sources(self.config(FinetuneConfig).data) if self.own_data()
                   else held_out_sources(config.eval_data))
        return question(load_rows([s.path for s in sources], row_parser(config), 1)[0])


def _stamp(path: Path) -> tuple[int, int] | None:
    """Differs as soon as the file is written again."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None
