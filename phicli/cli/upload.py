"""`phicli upload`: the optimized model into an Azure ML workspace, as a version of a model."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.azure import TransferConfig, UploadConfig, WorkspaceConfig
from phicli.config.layers import Settings
from phicli.errors import UsageError


def upload(
    config: UploadConfig,
    workspace: WorkspaceConfig,
    tag: Annotated[list[str] | None, typer.Option(
        "--tag", metavar="KEY=VALUE", help="Tag of the version; may be repeated", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded where; send nothing")] = False,
    json: options.Json = False,
) -> Sequence[Next]:
    """Upload the optimized model to Azure ML and register it; an interrupted upload goes on where it stopped.

    Examples:
      phicli upload --model tiny --dry-run
      phicli upload --name travel-phi --tag team=travel
    More: docs/azure.md
    """
    from phicli.azure.target import find_target

    tags = parse_tags(tag or [])
    settings = Settings()
    target = find_target(settings, asdict(workspace), console.ask)
    with console.task_log("upload", config.root_folder) as progress:
        from phicli.steps.upload import upload as step

        done = step(config, target, settings.resolve(TransferConfig), progress, tags=tags, dry_run=dry_run)
    if json:
        console.result_json(done.document())
        return []
    if dry_run:
        console.result_table(("file", "bytes"), [*done.files.items(), ("together", done.bytes)])
        console.note(f"would send {console.size(done.bytes_sent)} to {target.workspace_name}: {done.destination}")
    else:
        console.note(f"{done.status}: {done.name}:{done.version}, {console.size(done.bytes)}, "
                     f"{console.size(done.bytes_sent)} sent")
    console.result(done.reference)
    return [("upload", *_again(config, tags)) if dry_run else ("download", done.reference)]


def _again(config: UploadConfig, tags: dict[str, str]) -> list[str]:
    """The options of this run that are no settings."""
    return [*(["--path", config.path] if config.path else []),
            *(part for key, value in tags.items() for part in ("--tag", f"{key}={value}"))]


def parse_tags(texts: list[str]) -> dict[str, str]:
    """["a=1"] as {"a": "1"}. Raises UsageError for a text without a name."""
    tags = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise UsageError(f"'{text}' is no KEY=VALUE", where="--tag")
        tags[key.strip()] = value
    return tags
