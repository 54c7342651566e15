"""The model behind an endpoint in Azure ML, as an image, or as manifests."""

from pathlib import Path

from phicli.azure.endpoint import Deployed
from phicli.azure.endpoint import deploy as deploy_model
from phicli.azure.register import upload_model
from phicli.azure.target import Target
from phicli.azure.workspace import Workspace
from phicli.config.azure import TransferConfig
from phicli.config.deploy import DeployConfig
from phicli.deployment.image import build_context, check_served, collect_model
from phicli.deployment.manifests import write_manifests
from phicli.progress import SILENT, Progress


def write_deployment(config: DeployConfig, progress: Progress = SILENT) -> Path:
    """A folder for docker build, or a file of manifests, at `output` or under the root; gives its path.

    Raises:
        Missing: nothing to serve is there. BadInput: vLLM cannot take it, or something else stands at that place.
    """
    check_served(config)
    docker = config.to == "docker"
    place = Path(config.output or config.root_folder / "deploy" / ("docker" if docker else f"{config.to}.yaml"))
    return build_context(config, place, progress=progress) if docker else write_manifests(config, place)


def deploy_endpoint(config: DeployConfig, target: Target, transfer: TransferConfig, progress: Progress) -> Deployed:
    """Register the model with its image and put it behind an endpoint, which is billed from then on.

    Raises:
        UsageError: no size of a machine. Missing, RemoteError: as `faults.explained` says.
    """
    place = config.root_folder / "deploy" / "azureml"
    served = collect_model(config, place / "model", progress)
    sent = upload_model(served, f"{config.name}-model", target, transfer=transfer, progress=progress)
    context = build_context(config, place / "image", model=False)
    return deploy_model(Workspace(target, transfer), config, f"{sent.name}:{sent.version}", context, progress)
