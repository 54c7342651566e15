"""A managed online endpoint: made, scaled, asked once, its traffic divided, deleted."""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phicli.azure import faults
from phicli.azure.paging import listed
from phicli.azure.workspace import PRICES, Workspace
from phicli.config.deploy import DeployConfig
from phicli.errors import Missing, RemoteError, UsageError
from phicli.progress import Progress
from phicli.version import __version__

SECONDS = 3600  # for which one of Azure's long operations is waited for
CHAT, PORT = "/v1/chat/completions", 8000
SCALING_API, MANAGEMENT = "2022-10-01", "https://management.azure.com"


@dataclass
class Deployed:
    """An endpoint and one deployment behind it. answer: to the smoke test."""

    endpoint: str
    deployment: str
    scoring_uri: str = ""
    traffic: dict[str, int] = field(default_factory=dict)
    answer: str = ""


def costs(config: DeployConfig) -> str:
    """What is billed, before it is."""
    most = f", up to {config.most_instances} under load" if config.most_instances else ""
    return (f"{config.instances} x {config.instance_type}{most}, by the hour whether asked or not, until "
            f"phicli deploy --delete --name {config.name}; prices: {PRICES}")


def deploy(workspace: Workspace, config: DeployConfig, model: str, context: Path, progress: Progress) -> Deployed:
    """Make or update an endpoint and a deployment, ask it a question, and only then give it its share of requests.

    Args:
        model: a registered model, "NAME:VERSION". context: the folder that its image is built from.

    Raises:
        RemoteError: refused, failed, or no answer to the question; the traffic is then as it was.
    """
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    if not config.instance_type:
        raise UsageError("which machine?", where="--instance-type",
                         hint="phicli deploy --instance-type Standard_DS3_v2")
    client, done = workspace.client, Deployed(config.name, config.deployment)
    endpoint = _endpoint(workspace, config.name)
    if endpoint is None:
        with progress.task(f"endpoint {config.name}"), faults.explained(f"endpoint {config.name}"):
            endpoint = _wait(client.online_endpoints.begin_create_or_update(
                ManagedOnlineEndpoint(name=config.name, auth_mode="key", tags={"phicli": __version__})))
    with progress.task(f"deployment {config.deployment}"), faults.explained(f"deployment {config.deployment}"):
        _wait(client.online_deployments.begin_create_or_update(specify(config, model, context)))
    if config.most_instances:
        _scale(workspace, config)
    with progress.task("smoke test"):
        done.answer = ask(workspace, config)
    endpoint = _endpoint(workspace, config.name) or endpoint
    endpoint.traffic = done.traffic = divided(endpoint.traffic or {}, config.deployment, config.traffic)
    with progress.task("traffic"), faults.explained(f"endpoint {config.name}"):
        _wait(client.online_endpoints.begin_create_or_update(endpoint))
    done.scoring_uri = str(endpoint.scoring_uri or "")
    return done


def specify(config: DeployConfig, model: str, context: Path) -> Any:
    """The deployment as azure-ai-ml has it."""
    from azure.ai.ml.entities import (
        BuildContext,
        Environment,
        ManagedOnlineDeployment,
        OnlineRequestSettings,
        ProbeSettings,
    )

    health = {"port": PORT, "path": "/health"}
    environment = Environment(
        name=f"phicli-{config.engine}-{config.processor}", build=BuildContext(path=str(context)),
        inference_config={"liveness_route": health, "readiness_route": health,
                          "scoring_route": {"port": PORT, "path": CHAT}})
    return ManagedOnlineDeployment(
        name=config.deployment, endpoint_name=config.name, model=f"azureml:{model}", environment=environment,
        instance_type=config.instance_type, instance_count=config.instances,
        request_settings=OnlineRequestSettings(request_timeout_ms=180_000, max_concurrent_requests_per_instance=32),
        liveness_probe=ProbeSettings(initial_delay=600), readiness_probe=ProbeSettings(initial_delay=10))


def divided(traffic: dict[str, int], name: str, share: int) -> dict[str, int]:
    """Percentages with `share` for one deployment; the others keep their proportions, and all together make 100.

    The first deployment of an endpoint gets all of it.
    """
    others = {other: part for other, part in traffic.items() if other != name and part}
    together = sum(others.values())
    if not others:
        return {name: 100}
    scaled = {other: part * (100 - share) // together for other, part in others.items()}
    first = next(iter(scaled))
    scaled[first] += 100 - share - sum(scaled.values())
    return {**scaled, name: share}


def ask(workspace: Workspace, config: DeployConfig) -> str:
    """The deployment's answer to the question. Raises RemoteError: there is none."""
    body = {"messages": [{"role": "user", "content": config.question}], "max_tokens": 64}
    with tempfile.TemporaryDirectory(prefix="phicli-ask-") as scratch:
        request = Path(scratch) / "request.json"
        request.write_text(json.dumps(body))
        with faults.explained(f"asking {config.deployment}"):
            text = workspace.client.online_endpoints.invoke(config.name, deployment_name=config.deployment,
                                                            request_file=str(request))
    try:
        answer = json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        answer = None
    if not isinstance(answer, str) or not answer.strip():
        raise RemoteError(f"{config.deployment} gives no answer, so its traffic is as it was: {str(text)[:200]!r}",
                          hint="az ml online-deployment get-logs")
    return answer.strip()


def delete(workspace: Workspace, name: str, deployment: str | None) -> None:
    """Delete an endpoint with all behind it, or one deployment. Raises Missing: there is none of the name."""
    if _endpoint(workspace, name) is None:
        raise Missing(f"no endpoint '{name}'", hint="az ml online-endpoint list")
    client = workspace.client
    with faults.explained(f"endpoint {name}"):
        _wait(client.online_deployments.begin_delete(name=deployment, endpoint_name=name) if deployment
              else client.online_endpoints.begin_delete(name=name))


def _endpoint(workspace: Workspace, name: str) -> Any:
    with faults.explained("endpoints"):
        return next((e for e in listed(workspace.client.online_endpoints.list()) if e.name == name), None)


def _wait(poller: Any) -> Any:
    poller.wait(SECONDS)
    if not poller.done():
        raise RemoteError(f"not done after {SECONDS / 3600:g} h", hint="az ml online-endpoint show")
    return poller.result()


def scaling(config: DeployConfig, place: str, region: str) -> dict[str, Any]:
    """Azure Monitor's rules: one machine more above 70 % of the processor, one less below 25 %, over five minutes."""
    def rule(operator: str, threshold: int, direction: str) -> dict[str, Any]:
        return {"metricTrigger": {"metricName": "CpuUtilizationPercentage", "metricResourceUri": place,
                                  "timeGrain": "PT1M", "statistic": "Average", "timeWindow": "PT5M",
                                  "timeAggregation": "Average", "operator": operator, "threshold": threshold},
                "scaleAction": {"direction": direction, "type": "ChangeCount", "value": "1", "cooldown": "PT5M"}}

    return {"location": region, "properties": {
        "enabled": True, "targetResourceUri": place, "profiles": [{
            "name": "phicli", "capacity": {"minimum": str(config.instances), "maximum": str(config.most_instances),
                                           "default": str(config.instances)},
            "rules": [rule("GreaterThan", 70, "Increase"), rule("LessThan", 25, "Decrease")]}]}}


def _scale(workspace: Workspace, config: DeployConfig) -> None:
    from azure.core import PipelineClient
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy
    from azure.core.rest import HttpRequest

    from phicli.azure.login import SCOPE
    from phicli.azure.transport import make_transport, patient

    target, transfer = workspace.target, workspace.transfer
    group = f"/subscriptions/{target.subscription}/resourceGroups/{target.resource_group}/providers"
    place = f"{workspace.details.id}/onlineEndpoints/{config.name}/deployments/{config.deployment}"
    address = (f"{group}/Microsoft.Insights/autoscalesettings/{config.name}-{config.deployment}"
               f"?api-version={SCALING_API}")
    client: Any = PipelineClient(MANAGEMENT, transport=make_transport(transfer), policies=[
        patient(transfer), BearerTokenCredentialPolicy(workspace.login, SCOPE)])
    request = HttpRequest("PUT", MANAGEMENT + address, json=scaling(config, place, workspace.details.location))
    with faults.explained(f"scaling of {config.deployment}"):
        client.send_request(request).raise_for_status()
