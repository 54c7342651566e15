"""`phicli rm`: models, adapters and caches of phicli's off the disk."""

import shlex
from collections.abc import Sequence
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.layers import Settings
from phicli.errors import UsageError


def rm(
    names: Annotated[list[str], typer.Argument(
        help="A model, MODEL/ADAPTER, MODEL/search or cache/NAME, as phicli list names them; or a root",
        metavar="NAME...", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking")] = False,
    dry_run: options.DryRun = False,
) -> Sequence[Next]:
    """Remove what phicli has made, after asking; what it cannot prove to be its own stays, and so do models' originals.

    Examples:
      phicli rm tiny/travel --dry-run
      phicli rm tiny cache/kernels --yes
    More: docs/housekeeping.md
    """
    from phicli.steps.removing import plan_removal, remove

    settings = Settings()
    for removal in [plan_removal(settings, name) for name in names]:  # all are looked at before the first one goes
        for place in removal.places:
            console.note(f"{'would remove' if dry_run else 'to remove'}: {place}")
        if dry_run:
            continue
        if not yes and not _agreed(f"Remove {removal.name}, {console.size(removal.bytes)}? [y/N]", names):
            console.note(f"{removal.name} stays")
            continue
        size = removal.bytes
        remove(removal)
        console.note(f"{removal.name}: {console.size(size)} removed")
        if left := removal.left:
            console.note(f"left in {removal.root}, which may be yours: {', '.join(left)}")
    return [("list",)]


def _agreed(question: str, names: Sequence[str]) -> bool:
    """What a person answers. Raises UsageError where nobody can be asked."""
    if not console.can_ask():
        named = shlex.join(names)
        raise UsageError("nobody can be asked here", hint=f"phicli rm {named} --yes",
                         also=[f"to see what would go: phicli rm {named} --dry-run"])
    return (console.ask(question) or "").lower() in ("y", "yes")
