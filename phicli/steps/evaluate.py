"""Evaluation: the same held-out rows through every stage, one after the other."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phicli.artifacts.stages import versions, write_sealed
from phicli.config.steps import EvaluateConfig
from phicli.errors import BadInput
from phicli.evaluation.figures import Agreement, Likelihood, LogProbFile, log_softmax
from phicli.evaluation.plan import plan_evaluate
from phicli.evaluation.readers import Readers
from phicli.evaluation.stages import Stage
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress
from phicli.text import Encoded

if TYPE_CHECKING:
    from phicli.dataset.encoding import RowEncoder
    from phicli.dataset.understood import Content


@subdued()
def evaluate(config: EvaluateConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Measure every stage under `root` on held-out rows, and write the result to `root`/evaluation.json.

    Perplexity, KL and top-1 agreement are over the tokens of the response (the template's last field and the end
    token after it), given all before them. ONNX stages are also compared with the torch stage they were made from.

    Returns:
        {"rows", "cut_rows", "tokens" (of responses), "stages": [{"stage", "perplexity", "kl", "top1", "kl_torch",
        "top1_torch", "bytes", "seconds", "missing"}, …], and what it was made with}; figures None where not measured.

    Raises:
        Missing: nothing made under root yet; no room for temporary files. BadInput: rows, adapter or a stage.
    """
    plan = plan_evaluate(config, progress)
    done = plan.finished(config.force, progress)
    if done:
        return done
    from phicli.dataset import load_rows
    from phicli.dataset.encoding import RowEncoder, row_parser

    rows = load_rows(plan.files, row_parser(config))[: config.rows]
    present = [stage for stage in plan.stages if not stage.missing]
    adapters = [stage.adapter_path for stage in present if stage.adapter_path]
    encoders = [RowEncoder(folder, config, adapters, progress) for folder in dict.fromkeys(s.folder for s in present)]
    encoded, cut = _encode(rows, config.seq_len, encoders)
    with plan.locked(config.force, progress) as done:
        if done:
            return done
        with Readers(config.device, config.kernels) as readers:
            measured = _measure_all(present, encoded, readers, config.root_folder, progress)
        origins = plan.check_unchanged()
        document = {
            "model": config.model, "eval_data": config.eval_data, "rows": len(encoded), "cut_rows": cut,
            "tokens": sum(len(row.targets) for row in encoded),
            "seq_len": config.seq_len, "device": config.device,
            "kernels": config.kernels, "stages": [_entry(stage, measured.get(stage.name, {})) for stage in plan.stages],
            "inputs": plan.inputs, "origins": origins, "settings": plan.settings, "versions": versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_sealed(plan.target, document)
    return document


def _encode(rows: "Sequence[Content]", seq_len: int, encoders: "Sequence[RowEncoder]") -> tuple[list[Encoded], int]:
    """Tokens of the rows, and how many rows had to be cut. Rows with no response token left are no use and go.

    Raises:
        BadInput: the stages' tokenizers disagree, or no row is left.
    """
    first, *others = encoders
    found = [first.encode(row) for row in rows]
    for other in others:
        if any(other.encode(row) != one for row, one in zip(rows, found, strict=True)):
            raise BadInput(f"its tokenizer gives other tokens than that of {first.codec.folder}",
                           where=other.codec.folder, hint="make this stage again from the same model")
    cut = sum(len(one.ids) > seq_len for one in found)
    kept = [short for one in found if (short := one.cut(seq_len)).targets]
    if not kept:
        raise BadInput("no row has a response within the length limit", hint=f"--seq-len over {seq_len}")
    return kept, cut


def _measure_all(stages: Sequence[Stage], rows: Sequence[Encoded], readers: Readers, root: Path,
                 progress: Progress) -> dict[str, dict[str, Any]]:
    """Figures by stage name. What a later stage is compared with is kept on disk meanwhile."""
    wanted = {"original", *(stage.twin for stage in stages)}
    measured: dict[str, dict[str, Any]] = {}
    with ExitStack() as undo:
        kept: dict[str, LogProbFile] = {}
        for stage in stages:
            if stage.name in wanted:
                kept[stage.name] = LogProbFile(root)
                undo.callback(kept[stage.name].close)
            measured[stage.name] = _measure(stage, rows, readers, kept, progress)
    return measured


def _measure(stage: Stage, rows: Sequence[Encoded], readers: Readers, kept: dict[str, LogProbFile],
             progress: Progress) -> dict[str, Any]:
    begun = time.perf_counter()
    own = kept.get(stage.name)
    references = {key: kept[name] for key, name in (("", "original"), ("_torch", stage.twin))
                  if name in kept and name != stage.name}
    agreement = {key: Agreement() for key in references}
    likelihood = Likelihood()
    with progress.task(stage.name, len(rows), "rows") as task, readers.open(stage) as read:
        sources = [iter(file) for file in references.values()]
        for row in rows:
            log_probs = log_softmax(read(row))
            if not np.isfinite(log_probs).all():
                raise BadInput("its logits are not finite numbers", where=stage.adapter_path or stage.folder)
            likelihood.add(log_probs, [row.ids[at] for at in row.targets])
            for source, found in zip(sources, agreement.values(), strict=True):
                reference = next(source)
                if reference.shape != log_probs.shape:
                    raise BadInput(f"vocabulary of {log_probs.shape[1]}, the original's is {reference.shape[1]}",
                                   where=stage.folder, hint="make this stage again from the same model")
                found.add(reference, log_probs)
            if own is not None:
                own.add(log_probs)
            task.advance(1, perplexity=likelihood.perplexity)
    figures: dict[str, Any] = {"perplexity": likelihood.perplexity, "seconds": time.perf_counter() - begun}
    for key, found in agreement.items():
        figures |= {f"kl{key}": found.kl, f"top1{key}": found.top1}
    return figures


def _entry(stage: Stage, figures: dict[str, Any]) -> dict[str, Any]:
    blank = dict.fromkeys(("perplexity", "kl", "top1", "kl_torch", "top1_torch", "bytes", "seconds"))
    known = {} if stage.missing else {"bytes": stage.bytes}
    return {"stage": stage.name, "folder": str(stage.folder), "adapter": stage.adapter, "onnx": stage.onnx,
            "compared_with": stage.twin, **blank, **known, **figures, "missing": stage.missing}
