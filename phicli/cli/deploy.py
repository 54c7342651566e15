"""`phicli deploy`: the model behind an endpoint in Azure ML, as an image, or as manifests."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.engines import warn_of_idle, warn_of_target
from phicli.cli.following import Next
from phicli.config.azure import TransferConfig, WorkspaceConfig
from phicli.config.deploy import DeployConfig
from phicli.config.layers import Settings
from phicli.errors import UsageError


def deploy(
    config: DeployConfig,
    workspace: WorkspaceConfig,
    flags: options.Flags,
    yes: Annotated[bool, typer.Option("--yes", help="Create what costs money without a question")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the endpoint and all behind it")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be billed; create nothing")] = False,
    json: options.Json = False,
) -> Sequence[Next]:
    """Serve the model elsewhere: an endpoint in Azure ML, a folder for docker build, or manifests for Kubernetes.

    Examples:
      phicli deploy --to docker --model tiny
      phicli deploy --name travel --instance-type Standard_DS3_v2
    More: docs/deploy.md
    """
    if not delete:
        from phicli.deployment.image import check_served

        warn_of_idle(config, flags)
        warn_of_target(config, flags)
        check_served(config)  # before a price is named
    if config.to == "azureml":
        return _delete(config, workspace, json) if delete else _to_azure(config, workspace, yes, dry_run, json)
    if delete:
        raise UsageError("goes with --to azureml; files are yours to remove", where="--delete")
    if dry_run:
        raise UsageError("goes with --to azureml, where something is billed; files can be written anywhere",
                         where="--dry-run", hint="phicli deploy --output FOLDER")
    from phicli.steps.deploy import write_deployment

    with console.task_log("deploy", config.root_folder) as progress:
        place = write_deployment(config, progress)
    commands = _commands(config, shlex.quote(str(place)))
    if json:
        console.result_json({"path": str(place), "to": config.to, "commands": commands})
    else:
        console.result(str(place))
        for line in commands:
            console.note(line)
    return [("deploy", "--to", "kubernetes")] if config.to == "docker" else []


def _commands(config: DeployConfig, place: str) -> list[str]:
    """What makes a service of what was written."""
    if config.to == "docker":
        from phicli.deployment.image import KEYS

        gpu = "--gpus all " if config.processor == "cuda" or config.engine == "vllm" else ""
        return [f"docker build --tag {config.image} {place}",
                f'docker run {gpu}--publish 8000:8000 --volume "$PWD/keys.txt:{KEYS}:ro" {config.image}']
    from phicli.deployment.manifests import SECRET

    return [f"kubectl --namespace {config.namespace} create secret generic {SECRET} --from-file={SECRET}=keys.txt",
            f"kubectl apply --filename {place}"]


def _to_azure(config: DeployConfig, workspace: WorkspaceConfig, yes: bool, dry_run: bool, json: bool) -> Sequence[Next]:
    from phicli.azure.endpoint import costs
    from phicli.azure.target import find_target

    if not config.instance_type:
        raise UsageError("which machine?", where="--instance-type",
                         hint="phicli deploy --instance-type Standard_DS3_v2")
    console.note(f"billed: {costs(config)}")
    if dry_run:
        if json:
            console.result_json({"billed": costs(config)})
        return [("deploy",)]
    if not yes and (console.ask("Create it? Type yes") or "") != "yes":
        raise UsageError("nothing was created: it costs money", hint="phicli deploy --yes")
    settings = Settings()
    target, transfer = find_target(settings, asdict(workspace), console.ask), settings.resolve(TransferConfig)
    with console.task_log("deploy", config.root_folder) as progress:
        from phicli.steps.deploy import deploy_endpoint

        done = deploy_endpoint(config, target, transfer, progress)
    if json:
        console.result_json(asdict(done))
    else:
        console.note(f"traffic: {', '.join(f'{name} {share} %' for name, share in done.traffic.items())}")
        console.note(f"{config.question}\n  {done.answer}")
        console.result(done.scoring_uri)
    return [("deploy", "--delete", "--name", config.name)]


def _delete(config: DeployConfig, workspace: WorkspaceConfig, json: bool) -> Sequence[Next]:
    from phicli.azure.target import find_target

    settings = Settings()
    target = find_target(settings, asdict(workspace), console.ask)
    with console.task_log("deploy", config.root_folder):
        from phicli.azure.endpoint import delete
        from phicli.azure.workspace import Workspace

        delete(Workspace(target, settings.resolve(TransferConfig)), config.name, None)
    if json:
        console.result_json({"endpoint": config.name, "deleted": True})
    else:
        console.result(config.name)
    return []
