"""`phicli doctor`: what this machine lacks for the lab, and the command that cures it."""

from dataclasses import asdict
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.config.layers import Settings
from phicli.config.steps import DoctorConfig
from phicli.errors import ExitCode


def doctor(
    config: DoctorConfig,
    online: Annotated[bool, typer.Option("--online", help="Try to sign in too; without it no network is used")] = False,
    json: options.Json = False,
) -> None:
    """Check Python, packages, GPU, CUDA libraries, memory, disk and logins for the lab with a model.

    Green is as it should be, yellow works with less, red does not work (exit code 4); each with what cures it.

    Examples:
      phicli doctor --model tiny
      phicli doctor --device cuda --online
    More: docs/doctor.md
    """
    with console.task_log("doctor", config.root_folder) as progress:
        from phicli.doctor.checks import examine, worst

        found = examine(config, Settings(), online, progress)
    if json:
        checks = [{"check": name, **asdict(result)} for name, result in found.items()]
        console.result_json({"light": worst(found), **asdict(config), "checks": checks})
    else:
        console.result_lights((f.light, name, f.found, f.cure) for name, f in found.items())
    if worst(found) == "red":
        raise typer.Exit(ExitCode.MISSING)
