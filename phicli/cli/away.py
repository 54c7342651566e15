"""`--on azureml`: a long step as a job, followed at the terminal, its results in the root at the end."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phicli.cli import console
from phicli.cli.following import Next
from phicli.config.azure import JobConfig, TransferConfig, WorkspaceConfig
from phicli.config.bases import OfModel
from phicli.config.layers import Settings
from phicli.config.setting import Setting, flags_of, spelt
from phicli.config.steps import FinetuneConfig, OptimizeConfig
from phicli.errors import Missing, UsageError
from phicli.progress import SILENT

if TYPE_CHECKING:
    from phicli.azure.job_order import Order

AWAY = ("run", "quantize", "finetune", "optimize", "evaluate")  # the commands that can be jobs
HERE = ("json", "dry_run")  # options of a command that are for the terminal


def check_meant(given: Mapping[str, Any], known: Mapping[str, Setting]) -> None:
    """Raise UsageError for an option of jobs where the command is to run on this machine."""
    for name in given:
        if known[name].key.startswith("job."):
            raise UsageError("is of a job, and without --on azureml this machine does the work",
                             where=flags_of(name, known[name])[0].partition("/")[0],
                             hint="add --on azureml, or leave it out")


def run_away(command: str, job: JobConfig, config: OfModel, settings: Settings, flags: Mapping[str, Any],
             known: Mapping[str, Setting], given: Mapping[str, Any], plain: Mapping[str, str]) -> Sequence[Next]:
    """Do a command elsewhere.

    Args:
        flags: settings given as flags. given: all that was given, by name. plain: the spelling of those that are no
            settings.
    """
    from phicli.azure.job_order import Order
    from phicli.azure.jobs import check_compute

    _check_inputs(config)
    order = Order(command, [], config.root_folder, job)
    for name, setting in known.items():
        if name in ("root", "model", *plain) or setting.key.startswith("job.") or name not in flags:
            continue
        order.arguments += spelt(name, setting, order.take(name, setting, settings.get(setting, flags[name]).value))
    order.arguments += ["--model", order.take("model", known["model"], config.model)]
    order.arguments += [part for name, spelling in plain.items() if (value := given.get(name)) and name not in HERE
                        for part in ([spelling] if value is True else [spelling, str(value)])]
    order.take_settings(settings)
    check_compute(order)
    json = bool(given.get("json"))
    return _show(order, json) if given.get("dry_run") else _submit(
        order, config.model, settings, bool(flags.get("force") or given.get("force")), json)


def _check_inputs(config: OfModel) -> None:
    """Refuse what is neither a file here nor a name of the hub's, before a machine is paid to find that out.

    Raises:
        BadInput: there is no such model, file or folder. UsageError: a weight that is none, or rows from stdin.
        Missing: the root has no quantized model for the step.
    """
    from phicli.hub.datasets import find_sources, held_out_sources
    from phicli.hub.models import find_base, local_model

    for name in ("model", "base"):
        if (given := getattr(config, name, None)) and not given.startswith("azureml:"):
            local_model(given)
    rows = [row for name in ("data", "own_rows") for row in getattr(config, name, None) or ()]
    held_out = getattr(config, "eval_data", None)
    if "-" in (*rows, held_out):
        raise UsageError("what comes from stdin cannot go along with a job", where="-", hint="the same rows as a file")
    for row in rows:
        with suppress(Missing):  # of the hub's, and not fetched yet
            find_sources([row], local=True)
    if held_out:
        with suppress(Missing):
            held_out_sources(held_out, local=True)
    if isinstance(config, FinetuneConfig | OptimizeConfig) and not config.base:
        find_base(config.root_folder)


def _check_writable(root: Path) -> None:
    """Find out before a machine is paid whether its results have a place. Raises Missing: they have none."""
    from phicli.artifacts.stages import writing

    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=root, prefix=".new-").cleanup()


def _show(order: "Order", json: bool) -> Sequence[Next]:
    """What would be sent, and what would be billed; nothing is."""
    from phicli.azure.job_order import pack, requirements
    from phicli.azure.jobs import costs

    with tempfile.TemporaryDirectory(prefix="phicli-job-") as scratch:
        content = pack(order, Path(scratch), SILENT)
    line = " ".join(["phicli", order.command, *order.arguments])
    if json:
        console.result_json({"command": line, "billed": costs(order), "bytes": content.bytes, "digest": order.digest,
                             "files": {file.name: file.size for file in content.files}, "pip": requirements()})
    else:
        console.result_list([("command", line), ("billed", costs(order)),
                             ("files", f"{len(content.files):,}, {console.size(content.bytes)}")])
    return []


def _submit(order: "Order", model: str, settings: Settings, again: bool, json: bool) -> Sequence[Next]:
    from phicli.azure.target import find_target

    target = find_target(settings, asdict(settings.resolve(WorkspaceConfig)), console.ask)
    if order.job.wait:
        _check_writable(order.root)
    with console.task_log("job", order.root) as progress:
        from phicli.azure.job_following import follow
        from phicli.azure.job_results import fetch_results
        from phicli.azure.jobs import begin
        from phicli.azure.workspace import Workspace
        from phicli.hub.roots import remember_model

        workspace = Workspace(target, settings.resolve(TransferConfig))
        job, placed = begin(workspace, order, progress, again), []
        if order.job.wait:
            job = follow(workspace, job, progress)
            placed = fetch_results(workspace, job, order.root, progress)
            remember_model(order.root, model)
    if json:
        console.result_json({**asdict(job), "root": str(order.root), "placed": [str(path) for path in placed]})
    else:
        console.note(f"job {job.name}: {job.status}" + (f"; {len(placed)} results put into {order.root}"
                                                       if order.job.wait else ""))
        console.result(str(order.root) if order.job.wait else job.name)
    return [("status",)] if order.job.wait else [("jobs show", job.name)]
