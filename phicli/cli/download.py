"""`phicli download`: a model of an Azure ML registry or workspace onto the disk."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from phicli.artifacts.names import GENAI_CONFIG
from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.azure import TransferConfig, UploadConfig, WorkspaceConfig
from phicli.config.layers import Settings
from phicli.errors import Missing, UsageError


def download(
    workspace: WorkspaceConfig,
    reference: Annotated[str | None, typer.Argument(
        help="azureml://registries/R/models/N/versions/V, azureml://workspaces/W/models/N/labels/latest, azureml:N:V "
             "[default: the latest of what upload registers]", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", help="Folder for the model [default: the cache of downloads]")] = None,
    json: options.Json = False,
) -> Sequence[Next]:
    """Download a model from Azure ML; an interrupted download goes on where it stopped.

    Examples:
      phicli download azureml:ft-for-travel:1
      phicli download --output models/theirs
    More: docs/azure.md
    """
    from phicli.azure.reference import parse_reference
    from phicli.azure.target import cache_folder

    settings = Settings()
    if reference is None:
        _check_workspace(settings, asdict(workspace))
    wanted = parse_reference(reference or f"azureml:{settings.resolve(UploadConfig).name}@latest")
    from phicli.azure.download import download_model, target_of

    target = None if wanted.registry else target_of(wanted, settings, asdict(workspace), console.ask)
    cache = cache_folder(settings)
    with console.task_log("download", cache) as progress:
        done = download_model(wanted, target, cache=cache, output=output, transfer=settings.resolve(TransferConfig),
                              progress=progress)
    if json:
        console.result_json(asdict(done))
        return []
    console.note(f"{done.status}: {done.name}:{done.version}, {console.size(done.bytes)}, "
                 f"{console.size(done.bytes_fetched)} fetched")
    console.result(done.path)
    onnx = Path(done.path, GENAI_CONFIG).is_file()
    return [("chat", "--path", done.path) if onnx else ("quantize", "--model", reference or done.path)]


def _check_workspace(settings: Settings, given: dict[str, str | None]) -> None:
    """Raise UsageError where neither a model nor a workspace is named: then the model is what was forgotten."""
    from phicli.azure.target import find_target

    try:
        find_target(settings, given)
    except Missing:
        raise UsageError("which model? Without one, download takes the latest of what upload registered in the "
                         "workspace of the settings, and none is set", hint="phicli download azureml:NAME:VERSION",
                         also=["phicli download azureml://registries/REGISTRY/models/NAME/versions/VERSION"]) from None
