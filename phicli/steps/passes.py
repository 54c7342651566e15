"""Any of Olive's passes: a workflow of a file or of the command line, one pass after the other, as a stage."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from phicli.config.commands import WorkflowConfig
from phicli.errors import BadInput, UsageError
from phicli.export.graph_file import read_model
from phicli.hardware.devices import choose_device
from phicli.hub.models import resolve_model
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress
from phicli.workflow.described import PassSettings, Workflow, files_of, parse_pass, read_workflow
from phicli.workflow.plan import Plan, StageResult
from phicli.workflow.wording import worded

PASSES_FOLDER = "passes"  # in the root: what passes of a workflow make
# Passes of ours -> module, class, settings that are not its defaults. Olive's own ModelBuilder fails on genai 0.18.
OURS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "phicliawq": ("phicli.quantization.olive_pass", "PhicliAwq", {}),
    "slottedmodelbuilder": ("phicli.export.olive_pass", "SlottedModelBuilder", {}),
    "modelbuilder": ("phicli.export.olive_pass", "SlottedModelBuilder", {"slots": "none"})}


@subdued()
def run_workflow(config: WorkflowConfig, progress: Progress = SILENT) -> StageResult:
    """Run the passes of a workflow on a model; intermediate results are not kept.

    Returns:
        the folder (`output`, the workflow's `output_dir` or `root`/passes) and its manifest.

    Raises:
        UsageError: neither a workflow nor a pass. BadInput: a workflow that cannot be run, see `read_workflow`; a pass
            that there is not, or that cannot take this model. Missing: no GPU, no space.
    """
    workflow = workflow_of(config)
    plan = plan_workflow(config, workflow, progress)
    done = plan.finished(config.force, progress)
    if done:
        return StageResult(plan.target, done)
    with plan.locked(config.force, progress) as done:
        if done:
            return StageResult(plan.target, done)
        with plan.publishing() as (fresh, manifest):
            _run_all(workflow, plan, fresh, progress)
    return StageResult(plan.target, manifest)


def workflow_of(config: WorkflowConfig) -> Workflow:
    """The passes of the file, then those of the command line. Raises as `run_workflow`."""
    workflow = read_workflow(Path(config.workflow)) if config.workflow else Workflow(())
    workflow = replace(workflow, passes=(*workflow.passes, *map(parse_pass, config.passes)))
    if not workflow.passes:
        raise UsageError("no pass to run", where="--workflow", hint='--workflow FILE, or --pass "Rtn bits=4"')
    return workflow


def plan_workflow(config: WorkflowConfig, workflow: Workflow, progress: Progress = SILENT) -> Plan:
    """What `run_workflow` would make of the same settings; raises what it raises for the model."""
    if workflow.onnx:
        source = Path(str(workflow.model))
        file = source if source.is_file() else source / "model.onnx"
        with contextlib.suppress(FileNotFoundError):
            read_model(file)
        if not file.is_file():
            raise BadInput("no such ONNX model", where=file)
        sources = {"model": file.parent}
    else:
        sources = {"model": resolve_model(workflow.model or config.model, progress)}
    if workflow.adapter:
        sources["adapter"] = Path(workflow.adapter)
    device = choose_device("cuda" if workflow.gpu and config.device == "auto" else config.device)
    settings = {"passes": [_told(one) for one in workflow.passes], "device": device}
    target = Path(config.output or workflow.output or config.root_folder / PASSES_FOLDER)
    return Plan("workflow", target, sources | files_of(workflow.passes), settings)


def _run_all(workflow: Workflow, plan: Plan, output: Path, progress: Progress) -> None:
    from phicli.workflow.olive import run_pass

    passes: Sequence[PassSettings] = workflow.passes
    model: Any = plan.sources["model"]
    if workflow.onnx:
        from olive.model import ONNXModelHandler

        file = Path(str(workflow.model))
        model = ONNXModelHandler(str(plan.sources["model"]), file.name if file.is_file() else "model.onnx")
    with (tempfile.TemporaryDirectory(prefix=".passes-", dir=output.parent) as scratch,
          progress.task("passes", len(passes), "passes") as task):
        for at, one in enumerate(passes):
            place = output if one is passes[-1] else Path(scratch) / str(at)
            with worded(f"Olive's {one.name} cannot be run", plan.sources["model"]):
                kind, usual = _class_of(one.name)
                model = run_pass(kind, {**usual, **one.settings}, model, place, device=plan.settings["device"],
                                 adapter=plan.sources.get("adapter"), progress=progress)
            task.advance(1, name=one.name)
        if not any(output.iterdir()):  # the last one gives back what it got
            given = Path(model.get_resource("model_path"))
            folder = given if given.is_dir() else given.parent
            if not folder.is_relative_to(scratch):
                raise BadInput("no pass has changed anything", where=plan.sources["model"])
            shutil.copytree(folder, output, dirs_exist_ok=True)


def _class_of(name: str) -> tuple[Any, dict[str, Any]]:
    """A pass of ours with its settings, or the name of one of Olive's."""
    if name.lower() not in OURS:
        return name, {}
    module, title, settings = OURS[name.lower()]
    return getattr(import_module(module), title), settings


def _told(one: PassSettings) -> dict[str, Any]:
    """A pass as a manifest tells it."""
    return json.loads(json.dumps(asdict(one), default=lambda value: getattr(value, "model_dump", value.__str__)()))
