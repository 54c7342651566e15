"""The optimized model into an Azure ML workspace."""

from collections.abc import Mapping
from pathlib import Path

from phicli.artifacts.names import ONNX_FOLDER
from phicli.azure.register import Uploaded, upload_model
from phicli.azure.target import Target
from phicli.config.azure import TransferConfig, UploadConfig
from phicli.progress import Progress


def upload(config: UploadConfig, target: Target, transfer: TransferConfig, progress: Progress, *,
           tags: Mapping[str, str] | None = None, dry_run: bool = False) -> Uploaded:
    """Upload the model under the root, or the folder that `path` names, and register it; see `upload_model`."""
    folder = Path(config.path or config.root_folder / ONNX_FOLDER)
    return upload_model(folder, config.name, target, version=config.version, description=config.description,
                        tags=dict(tags or {}), base_model=None if config.path else config.model, dry_run=dry_run,
                        transfer=transfer, progress=progress)
