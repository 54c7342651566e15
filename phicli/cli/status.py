"""`phicli status`: which stages are there, and what the next `phicli run` would do."""

from dataclasses import asdict
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.config.layers import Settings
from phicli.config.steps import LabConfig

COLUMNS = ("step", "state", "why", "where", "made", "size")


def status(
    config: LabConfig,
    flags: options.Flags,
    reread: Annotated[bool, typer.Option(
        "--reread", help="Read the content of every file, also of those that look unchanged")] = False,
    json: options.Json = False,
) -> None:
    """Show every stage under the root: up to date, stale and why, broken and where, or not made."""
    from phicli.steps.status import chain

    links = chain(Settings(), flags, reread)
    if json:
        console.result_json([asdict(link) for link in links])
        return
    rows = [(link.step, link.state, link.why, link.place, link.made, console.size(link.bytes) if link.bytes else None)
            for link in links]
    console.result_table(COLUMNS, rows)
