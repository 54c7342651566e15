"""`phicli run`: the whole lab in one command."""

from dataclasses import asdict
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.options import option
from phicli.settings import Settings


def run(
    model: options.Model = None,
    data: options.Data = None,
    eval_data: options.EvalData = None,
    text_template: options.TextTemplate = None,
    name: Annotated[str | None, option("finetune", "name", "--name", "-n")] = None,
    algorithm: Annotated[str | None, option("quantize", "algorithm", "--algorithm", "-a")] = None,
    max_steps: Annotated[int | None, option("finetune", "max_steps")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Question at the end")] = None,
    device: options.Device = None,
    seed: options.Seed = None,
    root: options.Root = None,
    first: Annotated[str | None, typer.Option("--from", help="Do this step and those after it again")] = None,
    last: Annotated[str | None, typer.Option("--until", help="End with this step")] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Do the whole lab: inspect, quantize, finetune, optimize, evaluate, chat. What is up to date is skipped.

    Settings of single steps come from phicli.toml or the environment, as for the steps' own commands.
    """
    prompt = prompt and console.typed(prompt)
    flags = {k: v for k, v in locals().items() if k not in ("prompt", "first", "last", "json")}
    settings = Settings()
    found = settings.resolve("run", {"model": model, "root": root})
    steps = []
    with console.working("run", found.root) as progress:
        from phicli.steps.lab import run_lab

        for step in run_lab(settings, flags, prompt, progress, first, last):
            progress.note(f"{step.name}: {step.state}, {step.gave}")
            steps.append(step)
    if json:
        console.result_json([asdict(step) for step in steps])
        return
    rows = [(s.name, s.state, console.duration(s.seconds), s.gave, s.place) for s in steps]
    total = ("all", "", console.duration(sum(s.seconds for s in steps)), "", str(found.root))
    console.result_table(("step", "state", "time", "what it gave", "where"), [*rows, total])
