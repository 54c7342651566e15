"""`phicli status`: which stages are there, and what the next `phicli run` would do."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.cli.rebuilding import training_of
from phicli.config.layers import Settings
from phicli.config.steps import LabConfig
from phicli.workflow.plan import State

LEGEND = "stale: made from what has changed since; broken: its files are damaged; phicli run makes both again"
LASTING = "a flag is a setting of one command; those in phicli.toml last: phicli init"
COLUMNS = ("step", "state", "why", "where", "made", "size")


def status(
    config: LabConfig,
    flags: options.Flags,
    reread: Annotated[bool, typer.Option(
        "--reread", help="Read the content of every file, also of those that look unchanged")] = False,
    json: options.Json = False,
) -> Sequence[Next]:
    """Show every stage under the root: up to date, stale and why, broken and where, or not made.

    Examples:
      phicli status --model tiny
      phicli status --reread
    More: docs/reliability.md
    """
    from phicli.steps.status import DONE, stage_statuses

    stages = stage_statuses(Settings(), flags, reread, asked=False)
    missing = [stage.step for stage in stages if stage.state not in ("up to date", DONE)]
    first = next((step for step in missing if step != "data"), "chat")  # rows that are gone make no adapter stale
    adapters = [stage for stage in stages if stage.step == "finetune"]
    meant = next((stage for stage in adapters if stage.state not in ("up to date", DONE)), *adapters[:1])
    told = any(getattr(config, name) != getattr(LabConfig, name) for name in ("data", "max_steps", "epochs"))
    own = not meant.made or (told and Path(meant.place).name == config.name)  # the settings say how it is trained
    again = [] if own else training_of(Path(meant.place))
    after: list[Next] = [(first,) if first not in ("quantize", "finetune") else
                         ("verify", meant.place) if again is None else ("run", *again)]
    if json:
        console.result_json([asdict(stage) for stage in stages])
        return after
    rows = [(stage.step, stage.state, stage.why, stage.place, console.ago(stage.made),
             console.size(stage.bytes) if stage.bytes else None) for stage in stages]
    console.result_table(COLUMNS, rows)
    if any(stage.state in (State.STALE, State.BROKEN) for stage in stages):
        console.note(LEGEND)
    if any("changed setting" in stage.why for stage in stages):
        console.note(LASTING)
    return after
