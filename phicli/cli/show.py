"""`phicli show`: all that is known of a model or an adapter that was made here."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.layers import Settings

Name = Annotated[str, typer.Argument(help="A model, or MODEL/ADAPTER, as phicli list names them; or a root",
                                     metavar="NAME", show_default=False)]
# Of a manifest: for programs, with --json.
LEFT_OUT = ("files", "hashes", "inputs", "origins", "stages", "step", "created")


def show(name: Name, json: options.Json = False) -> Sequence[Next]:
    """Show what a model or an adapter was made from: with which settings, and how well it turned out.

    Examples:
      phicli show tiny
      phicli show tiny/travel --json
    More: docs/housekeeping.md
    """
    from phicli.steps.inventory import as_options, find_kept

    settings = Settings()
    model, adapter = find_kept(settings, name)
    made = [one for one in model.made if adapter is None or (one.is_adapter and one.place.name == adapter)]
    if json:
        console.result_json({"name": name, "root": str(model.root), "model": model.model, "made": [
            {"place": str(one.place), "bytes": one.bytes, **one.about} for one in made]})
    else:
        for one in made:
            facts = [("made", f"{one.created}, {console.size(one.bytes)}"), *_facts(one.about)]
            console.result_list(facts, title=f"{one.step}: {one.place}")
    where = as_options(settings, model)
    return [("chat", *where, *(["--adapter", adapter] if adapter else []))] if model.chats else [("run", *where)]


def _facts(about: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a manifest says, a line each; lists of figures by their number."""
    for key, value in about.items():
        if isinstance(value, dict) and key not in LEFT_OUT:
            yield key, ", ".join(f"{name} {_short(inner)}" for name, inner in value.items() if inner not in (None, []))
        elif key not in LEFT_OUT and value not in (None, []):
            yield key, _short(value)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"({', '.join(value)})"
    if isinstance(value, list):
        return ", ".join(map(str, value)) if len(value) <= 4 else f"{len(value)} figures"
    return console.number(value) if isinstance(value, float) else str(value)
