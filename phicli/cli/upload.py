"""`phicli upload`: the optimized model into an Azure ML workspace, as a version of a model."""

from pathlib import Path
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.options import option
from phicli.errors import UsageError
from phicli.settings import Settings


def upload(
    path: Annotated[Path | None, typer.Option(
        "--path", help="Folder to upload [default: the optimized model under the root]")] = None,
    name: Annotated[str | None, option("upload", "name")] = None,
    version: Annotated[str | None, option("upload", "version", "--version")] = None,
    description: Annotated[str | None, option("upload", "description")] = None,
    tag: Annotated[list[str] | None, typer.Option(
        "--tag", metavar="KEY=VALUE", help="Tag of the version; may be given often", show_default=False)] = None,
    workspace_name: options.WorkspaceName = None,
    resource_group: options.ResourceGroup = None,
    subscription: options.Subscription = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go where; write nothing")] = False,
    model: options.Model = None,
    root: options.Root = None,
    json: options.Json = False,
) -> None:
    """Upload the optimized model to Azure ML and register it; an interrupted upload goes on where it stopped."""
    from phicli.azure.target import find_target, line_from_settings

    tags = parse_tags(tag or [])
    settings = Settings()
    chosen = settings.resolve("upload", {"path": path, "name": name, "version": version, "description": description,
                                         "model": model, "root": root})
    folder = chosen.path or Path(chosen.root) / "onnx-ao"
    target = find_target(settings, {"subscription": subscription, "resource_group": resource_group,
                                    "workspace_name": workspace_name}, console.ask)
    with console.working("upload", chosen.root) as progress:
        from phicli.azure.register import upload_model

        done = upload_model(folder, chosen.name, target, version=chosen.version, description=chosen.description,
                            tags=tags, base_model=None if path else chosen.model, dry_run=dry_run,
                            line=line_from_settings(settings), progress=progress)
    if json:
        console.result_json(done.document())
        return
    if dry_run:
        console.result_table(("file", "bytes"), [*done.files.items(), ("together", done.bytes)])
        console.note(f"would send {console.size(done.bytes_sent)} to {target.workspace_name}: {done.destination}")
    else:
        console.note(f"{done.status}: {done.name}:{done.version}, {console.size(done.bytes)}, "
                     f"{console.size(done.bytes_sent)} sent")
    console.result(done.reference)


def parse_tags(texts: list[str]) -> dict[str, str]:
    """["a=1"] as {"a": "1"}. Raises UsageError for a text without a name."""
    tags = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise UsageError(f"'{text}' is no KEY=VALUE", where="--tag")
        tags[key.strip()] = value
    return tags
