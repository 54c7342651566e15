"""The same rows through every stage, one after the other: sums by row, from which all figures come."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phicli.errors import BadInput
from phicli.evaluation.figures import Agreement, Likelihood, LogProbFile, log_softmax
from phicli.evaluation.held_out import HeldOut
from phicli.evaluation.readers import Reader, Readers
from phicli.evaluation.stages import Stage
from phicli.inference.runners import greedy
from phicli.progress import Progress
from phicli.uncertainty import Resamples, in_blocks
from phicli.workflow.wording import worded


@dataclass
class Measured:
    """Of one stage.

    sums: float64 [rows] of each of "nll", and beside the reference "kl" and "top1", beside the twin "kl_torch" and
    "top1_torch". answers: texts, one a question. tasks: figures by lm-eval's task.
    """

    sums: dict[str, np.ndarray]
    seconds: float = 0.0
    answers: list[str] = field(default_factory=list)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)


class Measurement:
    """What is measured of each stage.

    reference: name of the stage that all are compared with. folder: for what later stages are compared with, which is
    kept on disk meanwhile. questions: how many are answered, with at most `longest` tokens. tasks: of lm-eval.
    """

    def __init__(self, held_out: HeldOut, reference: str, folder: Path, questions: int = 0, longest: int = 0,
                 tasks: Sequence[Any] = ()):
        self.held_out, self.reference, self.folder = held_out, reference, folder
        self.questions, self.longest, self.tasks = held_out.questions[:questions], longest, tasks

    def run(self, stages: Sequence[Stage], readers: Readers, progress: Progress) -> dict[str, Measured]:
        """By stage name. Raises BadInput: a stage cannot be run, or is no relative of what it is compared with."""
        wanted = {self.reference, *(stage.twin for stage in stages)}
        measured: dict[str, Measured] = {}
        with ExitStack() as undo:
            kept: dict[str, LogProbFile] = {}
            for stage in stages:
                if stage.name in wanted:
                    kept[stage.name] = LogProbFile(self.folder)
                    undo.callback(kept[stage.name].close)
                measured[stage.name] = self._stage(stage, readers, kept, progress)
        return measured

    def _stage(self, stage: Stage, readers: Readers, kept: Mapping[str, LogProbFile], progress: Progress) -> Measured:
        begun = time.perf_counter()
        with readers.open(stage) as reader:
            found = Measured(self._likelihoods(stage, reader, kept, progress))
            found.seconds = time.perf_counter() - begun
            if self.questions:
                found.answers = self._answers(stage, reader, progress)
            if self.tasks:
                from phicli.evaluation.harness import run_tasks

                found.tasks = run_tasks(self.tasks, stage, reader, progress)
        return found

    def _likelihoods(self, stage: Stage, read: Reader, kept: Mapping[str, LogProbFile],
                     progress: Progress) -> dict[str, np.ndarray]:
        rows, own, whole = self.held_out.rows, kept.get(stage.name), Likelihood()
        sources = {key: iter(kept[name]) for key, name in (("", self.reference), ("_torch", stage.twin))
                   if name and name in kept and name != stage.name}
        sums = {name: np.zeros(len(rows)) for name in
                ("nll", *(f"{figure}{key}" for key in sources for figure in ("kl", "top1")))}
        with progress.task(stage.name, len(rows), "rows") as task:
            for at, row in enumerate(rows):
                log_probs = log_softmax(read(row))
                if not np.isfinite(log_probs).all():
                    raise BadInput("its logits are not finite numbers", where=stage.adapter_path or stage.folder)
                before = whole.nll_sum
                whole.add(log_probs, [row.ids[place] for place in row.targets])
                sums["nll"][at] = whole.nll_sum - before
                for key, source in sources.items():
                    beside = self._agreement(next(source), log_probs, stage)
                    sums[f"kl{key}"][at], sums[f"top1{key}"][at] = beside.kl_sum, beside.same
                if own is not None:
                    own.add(log_probs)
                task.advance(1, perplexity=whole.perplexity)
        return sums

    def _agreement(self, reference: np.ndarray, log_probs: np.ndarray, stage: Stage) -> Agreement:
        if reference.shape != log_probs.shape:
            raise BadInput(f"vocabulary of {log_probs.shape[1]}, that of {self.reference} is {reference.shape[1]}",
                           where=stage.folder, hint="make this stage again from the same model")
        found = Agreement()
        found.add(reference, log_probs)
        return found

    def _answers(self, stage: Stage, reader: Reader, progress: Progress) -> list[str]:
        from phicli.text import TextCodec

        codec, answers = TextCodec(stage.folder), []
        with progress.task(f"{stage.name}: answers", len(self.questions), "rows") as task:
            for question in self.questions:
                room = min(self.longest, reader.context - len(question.ids))
                with worded("the model cannot be run", stage.folder):
                    ids = greedy(reader.runner, question.ids, room, self.held_out.ends) if room > 0 else []
                answers.append(codec.decode(ids).strip())
                task.advance(1)
        return answers


def figures(measured: Mapping[str, Measured], tokens: np.ndarray, reference: str) -> dict[str, dict[str, Any]]:
    """Figures with their intervals by stage name, and the sums by block of rows that they come from.

    tokens: [rows], those that count. perplexity_ratio: to the reference's, resampled in pairs.
    """
    counts = in_blocks(tokens)
    resamples, total = Resamples(counts), counts.sum()
    found: dict[str, dict[str, Any]] = {}
    for name, stage in measured.items():
        blocks = {figure: in_blocks(values) for figure, values in stage.sums.items()}
        nll = blocks["nll"]
        one = {"perplexity": _perplexity(nll.sum() / total),
               "perplexity_interval": resamples.interval(nll, _perplexity)}
        for figure, sums in blocks.items():
            if figure != "nll":
                one |= {figure: sums.sum() / total, f"{figure}_interval": resamples.interval(sums)}
        if reference in measured and name != reference:
            change = nll - in_blocks(measured[reference].sums["nll"])
            one |= {"perplexity_ratio": _perplexity(change.sum() / total),
                    "perplexity_ratio_interval": resamples.interval(change, _perplexity)}
        found[name] = {**one, "seconds": stage.seconds, "blocks": {k: v.tolist() for k, v in blocks.items()}}
    return found


def _perplexity(nll: Any) -> Any:
    """exp of a mean negative log-likelihood in nats, or of each of several."""
    found = np.exp(np.minimum(nll, 700.0))
    return float(found) if np.ndim(found) == 0 else found
