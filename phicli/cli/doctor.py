"""`phicli doctor`: what this machine lacks for the lab, and the command that cures it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.commands import DoctorConfig
from phicli.config.layers import Settings
from phicli.errors import ExitCode


def doctor(
    config: DoctorConfig,
    online: Annotated[bool, typer.Option("--online", help="Try to sign in too")] = False,
    json: options.Json = False,
) -> Sequence[Next]:
    """Check this machine for the lab with a model: Python, packages, GPU, CUDA libraries, memory, disk, logins.

    At the end, what the model needs at each step, and which CPUs and GPUs have that. Without --online no network is
    used, except for the config.json of a model of the hub that is not on this machine.

    Green is as it should be, yellow works with less, red does not work (exit code 4); each with what cures it.

    Examples:
      phicli doctor --model tiny
      phicli doctor --device cuda --online
    More: docs/doctor.md
    """
    with console.task_log("doctor", config.root_folder) as progress:
        from phicli.doctor.checks import examine, verdict, worst
        from phicli.doctor.needs import COLUMNS, rows_of

        found, needs = examine(config, Settings(), online, progress)
    if json:
        checks = [{"check": name, **asdict(result)} for name, result in found.items()]
        console.result_json({"light": worst(found), **asdict(config), "checks": checks, "needs": needs})
    else:
        console.result_lights((f.light, name, f.found, f.cure) for name, f in found.items())
        if needs:
            console.result_table(COLUMNS, rows_of(needs), f"What {config.model} needs (finetune: "
                                 f"{needs['batch_size']} rows of up to {needs['row_tokens']} tokens)")
        console.result(verdict(found, config.model))
    if worst(found) == "red":
        raise typer.Exit(ExitCode.MISSING)
    return [("run",)]
