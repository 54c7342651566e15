"""`phicli verify`: whether results are what their steps wrote, and what they were made from."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from phicli.artifacts.names import ROOT_MODEL
from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.measuring import VerifyConfig
from phicli.errors import BadInput, Missing

SHOWN = 3  # files that are named in a row of the table
DIGITS = 12  # of a fingerprint


def verify(
    config: VerifyConfig,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 4 if an input is not on this "
                                         "machine")] = False,
    json: options.Json = False,
) -> Sequence[Next]:
    """Prove what a result was made from: every byte of it, of base, adapters and rows, as far as they are here.

    A file that is not as it was is named, and the exit code is 3. What is elsewhere is told with its hash.

    Examples:
      phicli verify --model tiny
      phicli verify models/tiny/onnx-ao --input rows.jsonl
    More: docs/verify.md
    """
    from phicli.steps.verify import Found
    from phicli.steps.verify import verify as verify_results

    with console.task_log("verify", config.root_folder) as progress:
        try:
            found = verify_results(Path(config.place or config.root_folder), [Path(path) for path in config.inputs],
                                   progress)
        except Missing as e:
            if not config.place:  # nothing was named wrongly
                e.hint = "phicli run"
            raise
    root = _root_of(Path(config.place)) if config.place else []
    if json:
        console.result_json([asdict(one) for one in found])
    else:
        console.result_table(("what", "made by", "state", "what is wrong", "fingerprint", "where"), map(_row, found))
    changed = [one for one in found if one.wrong]
    if changed:
        raise BadInput(changed[0].wrong[0], where=changed[0].place, hint=shlex.join(["phicli", "run", *root]))
    if away := [one for one in found if one.state == Found.ELSEWHERE]:
        text = f"{len({one.fingerprint for one in away})} inputs are not on this machine; the table has their hashes"
        if strict:
            raise Missing(text, where=away[0].place or away[0].name, hint="--input PATH, where they are now")
        console.note(text)
    return [("status", *root)]


def _root_of(place: Path) -> list[str]:
    """The option that names the root that a place is, or is in; none where that is not known."""
    roots = (folder for folder in (place, *place.parents[:3]) if (folder / ROOT_MODEL).is_file())
    return [part for root in islice(roots, 1) for part in ("--root", str(root))]


def _row(one: Any) -> tuple[Any, ...]:
    more = len(one.wrong) - SHOWN
    wrong = "; ".join(one.wrong[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
    place, here = Path(one.place), Path.cwd()
    shown = place.relative_to(here) if place.is_relative_to(here) else one.place
    return ("  " * one.depth + one.name, one.step, one.state, wrong, one.fingerprint[:DIGITS], shown)
