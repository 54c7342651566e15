"""`phicli download`: a model of an Azure ML registry or workspace onto the disk."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.config.azure import TransferConfig, UploadConfig, WorkspaceConfig
from phicli.config.layers import Settings


def download(
    workspace: WorkspaceConfig,
    reference: Annotated[str | None, typer.Argument(
        help="azureml://registries/R/models/N/versions/V, azureml://workspaces/W/models/N/labels/latest, azureml:N:V "
             "[default: the latest of what upload registers]", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", help="Folder for the model [default: the cache of downloads]")] = None,
    json: options.Json = False,
) -> None:
    """Download a model from Azure ML; an interrupted download goes on where it stopped.

    Examples:
      phicli download azureml:ft-for-travel:1
      phicli download --output models/theirs
    More: docs/azure.md
    """
    from phicli.azure.reference import parse_reference
    from phicli.azure.target import cache_folder

    settings = Settings()
    wanted = parse_reference(reference or f"azureml:{settings.resolve(UploadConfig).name}@latest")
    from phicli.azure.download import download_model, target_of

    target = None if wanted.registry else target_of(wanted, settings, asdict(workspace), console.ask)
    cache = cache_folder(settings)
    with console.task_log("download", cache) as progress:
        done = download_model(wanted, target, cache=cache, output=output, transfer=settings.resolve(TransferConfig),
                              progress=progress)
    if json:
        console.result_json(asdict(done))
        return
    console.note(f"{done.status}: {done.name}:{done.version}, {console.size(done.bytes)}, "
                 f"{console.size(done.bytes_fetched)} fetched")
    console.result(done.path)
