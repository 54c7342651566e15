"""`phicli status`: which stages are there, and what the next `phicli run` would do."""

from dataclasses import asdict
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.options import option
from phicli.settings import Settings

COLUMNS = ("step", "state", "why", "where", "made", "size")


def status(
    model: options.Model = None,
    data: options.Data = None,
    eval_data: options.EvalData = None,
    text_template: options.TextTemplate = None,
    name: Annotated[str | None, option("finetune", "name", "--name", "-n")] = None,
    algorithm: Annotated[str | None, option("quantize", "algorithm", "--algorithm", "-a")] = None,
    max_steps: Annotated[int | None, option("finetune", "max_steps")] = None,
    device: options.Device = None,
    seed: options.Seed = None,
    root: options.Root = None,
    reread: Annotated[bool, typer.Option("--reread", help="Read every file, also those that look unchanged")] = False,
    json: options.Json = False,
) -> None:
    """Show every stage under the root: up to date, stale and why, broken and where, or not made."""
    flags = {k: v for k, v in locals().items() if k not in ("reread", "json")}
    from phicli.steps.status import chain

    links = chain(Settings(), flags, reread)
    if json:
        console.result_json([asdict(link) for link in links])
        return
    rows = [(link.step, link.state, link.why, link.place, link.made, console.size(link.bytes) if link.bytes else None)
            for link in links]
    console.result_table(COLUMNS, rows)
