"""`phicli list`: the models and adapters here, and phicli's caches, with their sizes."""

from collections.abc import Sequence

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.layers import Settings


def list(json: options.Json = False) -> Sequence[Next]:
    """List models, adapters and caches: those in the folder models and phicli's own, with sizes.

    Examples:
      phicli list
      phicli list --json
    More: docs/housekeeping.md
    """
    from phicli.steps.inventory import SEARCHED, as_options, caches, kept_models, size_on_disk

    settings = Settings()
    models = kept_models(settings)
    kept = {name: sum(map(size_on_disk, places)) for name, places in caches()}
    if json:
        console.result_json({"caches": kept, "models": [
            {"name": one.name, "root": str(one.root), "model": one.model, "made": [
                {"step": made.step, "place": str(made.place), "created": made.created, "bytes": made.bytes}
                for made in (*one.made, *one.derived)]} for one in models]})
    else:
        rows = []
        for one in models:
            stages = ", ".join([*(made.place.name for made in one.made if not made.is_adapter),
                                *(str(made.place.relative_to(one.root)) for made in one.derived)])
            made_last = max((made.created for made in (*one.made, *one.derived)), default="")
            rows.append((one.name, f"{one.model or '?'}: {stages or 'adapters only'}", made_last,
                         console.size(size_on_disk(one.root))))
            rows += [(f"{one.name}/{made.place.name}", "adapter", made.created, console.size(made.bytes))
                     for made in one.made if made.is_adapter]
            rows += [(f"{one.name}/{SEARCHED}", "trials of a search", "", console.size(size_on_disk(folder)))
                     for folder in [one.root / SEARCHED] if one.searched]
            rows += [(f"{one.name}/{name}", "training that was not finished", "", "") for name in one.unfinished]
        rows += [(name, "what phicli can make or fetch again", "", console.size(size)) for name, size in kept.items()]
        console.result_table(("name", "what", "made", "size"), rows)
    return [("chat", *as_options(settings, one)) for one in models if one.chats][:1] or [("run",)]
