"""Evaluation: the same held-out rows through every stage, one after the other."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phicli.artifacts.stages import read_manifest, versions, write_sealed
from phicli.config.steps import EvaluateConfig
from phicli.errors import BadInput
from phicli.evaluation.plan import EvaluationPlan, plan_evaluate
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress
from phicli.uncertainty import in_blocks

FIGURES = ("perplexity", "kl", "top1", "kl_torch", "top1_torch", "perplexity_ratio")


@subdued()
def evaluate(config: EvaluateConfig, progress: Progress = SILENT, kept: bool = True) -> dict[str, Any]:
    """Measure every stage under `root`, or those that are named, on held-out rows or a text.

    Perplexity, KL and top-1 agreement are over the tokens of the response (the template's last field and the end
    token after it), given all before them; of a text over all tokens. ONNX stages are also compared with the torch
    stage they were made from. Intervals are of 95 %, by bootstrap over rows.

    kept: the document is written, unless the stages are named and `output` is not.

    Returns:
        the document that is written to `output` or `root`/evaluation.json; with `stages` and no `output` nothing is
        written. {"rows", "cut_rows", "tokens" (that count), "reference", "stages": [{"stage", "perplexity",
        "perplexity_interval", "kl", "top1", "kl_torch", "top1_torch", "perplexity_ratio", …, "metrics", "tasks",
        "bytes", "seconds", "missing", "blocks" (sums by row, or by blocks of rows)}, …], "answers", and what it was
        made with}; figures None where not measured.

    Raises:
        Missing: nothing made under root yet; no room for temporary files; lm-eval is not installed. UsageError: no such
        metric. BadInput: rows, adapter or a stage; a metric or task that fails.
    """
    plan = plan_evaluate(config, progress)
    _warn_of_trained(plan, progress)
    if not (plan.kept and kept):
        return _measure(plan, config, Path(tempfile.gettempdir()), progress)
    done = plan.finished(config.force, progress)
    if done:
        return done
    with plan.locked(config.force, progress) as done:
        if done:
            return done
        document = _measure(plan, config, plan.target.parent, progress)
        document["origins"] = plan.check_unchanged()
        write_sealed(plan.target, document)
    return document


def _warn_of_trained(plan: EvaluationPlan, progress: Progress) -> None:
    """Say which adapters were trained on a file that they are measured on."""
    measured = {plan.inputs[name]: path for name, path in plan.sources.items() if path in plan.files}
    for stage in plan.stages:
        made = read_manifest(stage.adapter_path) if stage.adapter_path and stage.adapter_path.is_dir() else None
        for name, content in made.inputs.items() if made else ():
            if name.split()[0] == "data" and content in measured:
                progress.warn(f"{stage.name} was trained on rows of {measured[content]}: its figures say nothing of "
                              "other rows")


def _measure(plan: EvaluationPlan, config: EvaluateConfig, scratch: Path, progress: Progress) -> dict[str, Any]:
    from phicli.dataset.encoding import RowEncoder
    from phicli.evaluation.harness import read_tasks
    from phicli.evaluation.held_out import read_held_out
    from phicli.evaluation.measuring import Measurement, figures
    from phicli.evaluation.metrics import find_metric
    from phicli.evaluation.readers import Readers

    metrics, tasks = {name: find_metric(name) for name in config.metrics}, read_tasks(config.tasks)
    present = [stage for stage in plan.stages if not stage.missing]
    adapters = [stage.adapter_path for stage in present if stage.adapter_path]
    encoders = [RowEncoder(folder, config, adapters, progress) for folder in dict.fromkeys(s.folder for s in present)]
    held_out = read_held_out(plan.files, config, encoders)
    questions = config.generate or (len(held_out.questions) if metrics else 0)
    if questions and not held_out.questions:
        raise BadInput("no row asks anything that could be answered", where=config.eval_data)
    measurement = Measurement(held_out, plan.reference, scratch, questions, config.max_new_tokens, tasks)
    with Readers(config.device, config.kernels, config.runs_on) as readers:
        measured = measurement.run(present, readers, progress)
    tokens = np.array([len(row.targets) for row in held_out.rows])
    found = figures(measured, tokens, plan.reference)
    for name, stage in measured.items():
        found[name] |= {"metrics": _judged(metrics, measurement.questions, stage.answers), "tasks": stage.tasks}
    return {
        "model": config.model, "eval_data": config.eval_data, "rows": len(held_out.rows), "cut_rows": held_out.cut,
        "tokens": int(tokens.sum()), "tokens_digest": held_out.digest, "reference": plan.reference,
        "blocks": in_blocks(tokens).tolist(), "seq_len": config.seq_len, "device": config.device,
        "kernels": config.kernels,
        "stages": [_entry(stage, found.get(stage.name, {})) for stage in plan.stages],
        "answers": [{"prompt": question.prompt, "reference": question.reference,
                     "answers": {name: stage.answers[at] for name, stage in measured.items()}}
                    for at, question in enumerate(measurement.questions)],
        "inputs": plan.inputs, "settings": plan.settings, "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _judged(metrics: Mapping[str, Any], questions: Any, answers: list[str]) -> dict[str, Any]:
    from phicli.evaluation.metrics import judge

    said = [(question.prompt, question.reference, answer) for question, answer in zip(questions, answers, strict=True)]
    return {name: judge(name, metric, said) for name, metric in metrics.items()}


def _entry(stage: Any, found: dict[str, Any]) -> dict[str, Any]:
    intervals = [f"{name}_interval" for name in FIGURES]
    blank = dict.fromkeys((*FIGURES, *intervals, "bytes", "seconds"))
    known = {} if stage.missing else {"bytes": stage.bytes}
    return {"stage": stage.name, "folder": str(stage.folder), "adapter": stage.adapter, "onnx": stage.onnx,
            "compared_with": stage.twin, **blank, **known, **found, "missing": stage.missing}
