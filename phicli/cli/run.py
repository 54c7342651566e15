"""`phicli run`: the whole lab in one command."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from phicli.artifacts.names import GENAI_CONFIG
from phicli.cli import completion, console, forecasts, options
from phicli.cli.following import Next
from phicli.config.commands import WorkflowConfig
from phicli.config.layers import Settings
from phicli.config.steps import FinetuneConfig, LabConfig
from phicli.errors import UsageError
from phicli.progress import keeping


def run(
    config: LabConfig,
    passes: WorkflowConfig,
    flags: options.Flags,
    prompt: Annotated[str | None, typer.Option(
        "--prompt", "-p", help="Question to ask at the end [default: that of the first held-out row]")] = None,
    first: Annotated[str | None, typer.Option(
        "--from", metavar="STEP", autocompletion=completion.steps,
        help="Make this step and those after it again")] = None,
    last: Annotated[str | None, typer.Option(
        "--until", metavar="STEP", autocompletion=completion.steps, help="Stop after this step")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make all steps again")] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> Sequence[Next]:
    """Do the whole lab: inspect, quantize, finetune, optimize, evaluate, chat. What is up to date is skipped.

    Settings of single steps come from phicli.toml or the environment. With --workflow or --pass, passes of Olive's run
    in its place.

    Examples:
      phicli run --model tiny
      phicli run --data chats.jsonl --from finetune
    More: docs/tutorial.md, docs/workflows.md
    """
    if passes.workflow or passes.passes:
        return _run_passes(passes, dry_run or prompt or first or last, json)
    if passes.output:
        raise UsageError("goes with --workflow or --pass", where="--output")
    if dry_run:
        forecasts.show_lab({**flags, "force": force}, first, last, json)
        return [("run", *(["--from", first] if first else []), *(["--until", last] if last else []),
                 *(["--force"] if force else []))]
    prompt = prompt and console.typed(prompt)
    settings, steps = Settings(), list[Any]()
    with console.task_log("run", config.root_folder) as progress:
        from phicli.steps.lab import STEPS, run_lab

        with keeping(lambda: _done(steps)):
            for step in run_lab(settings, {**flags, "force": force}, prompt, progress, first, last):
                progress.note(f"{step.name}: {step.state}, {step.gave}")
                steps.append(step)
    after: list[Next] = [("chat", "--adapter", settings.resolve(FinetuneConfig, flags).name)]
    if last and last != STEPS[-1]:
        after = [("run",)]
    if json:
        console.result_json([asdict(step) for step in steps])
        return after
    rows = [(s.name, s.state, console.duration(s.seconds), s.gave, s.place) for s in steps]
    total = ("all", "", console.duration(sum(s.seconds for s in steps)), "", config.root)
    console.result_table(("step", "state", "time", "what it gave", "where"), [*rows, total])
    return after


def _run_passes(config: WorkflowConfig, of_lab: object, json: bool) -> Sequence[Next]:
    """Olive's passes in place of the lab's steps."""
    if of_lab:
        raise UsageError("takes no --prompt, --from, --until and --dry-run: these are the lab's", where="--workflow")
    with console.task_log("run", config.root_folder) as progress:
        from phicli.steps.passes import run_workflow

        folder, manifest = run_workflow(config, progress)
    if json:
        console.result_json({"path": str(folder), **vars(manifest)})
    else:
        console.note(f"{console.size(manifest.bytes)}, {console.duration(manifest.seconds)}")
        console.result(str(folder))
    return [("chat", "--path", str(folder))] if (folder / GENAI_CONFIG).is_file() else []


def _done(steps: list[Any]) -> str:
    names = ", ".join(step.name for step in steps)
    return f"done, and kept: {names}; the same command goes on after that" if names else ""
