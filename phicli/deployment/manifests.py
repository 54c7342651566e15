"""Manifests: for Kubernetes a Deployment, a Service and, if it is to scale, a HorizontalPodAutoscaler; for KServe an
InferenceService.
"""

from pathlib import Path
from typing import Any

from phicli.artifacts.places import check_own_place
from phicli.artifacts.publishing import write_text
from phicli.config.deploy import DeployConfig
from phicli.deployment.image import KEYS, MADE_BY, PORT

SECRET = "api-key"  # of the cluster: its key of the same name holds the keys, one a line


def write_manifests(config: DeployConfig, output: Path) -> Path:
    """Write the documents into one YAML file. Raises BadInput: a file that is none of these stands there."""
    import yaml

    check_own_place(output, MADE_BY, "manifest")
    documents = [inference_service(config)] if config.to == "kserve" else kubernetes(config)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, f"# {MADE_BY}\n{yaml.safe_dump_all(documents, sort_keys=False)}")
    return output


def kubernetes(config: DeployConfig) -> list[dict[str, Any]]:
    labels = {"app.kubernetes.io/name": config.name}
    named = {"name": config.name, "namespace": config.namespace, "labels": labels}
    documents: list[dict[str, Any]] = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": named,
         "spec": {"replicas": config.instances, "selector": {"matchLabels": labels},
                  "template": {"metadata": {"labels": labels}, "spec": pod(config)}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": named,
         "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": PORT}]}},
    ]
    if config.most_instances:
        del documents[0]["spec"]["replicas"]  # else each apply would undo the scaling
        documents.append({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": named,
            "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": config.name},
                     "minReplicas": config.instances, "maxReplicas": config.most_instances,
                     "metrics": [{"type": "Resource", "resource": {
                         "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]}})
    return documents


def inference_service(config: DeployConfig) -> dict[str, Any]:
    predictor = {**pod(config), "minReplicas": config.instances,
                 "maxReplicas": config.most_instances or config.instances}
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
            "metadata": {"name": config.name, "namespace": config.namespace}, "spec": {"predictor": predictor}}


def pod(config: DeployConfig) -> dict[str, Any]:
    """A pod's spec: not root, nothing but its own ports, ready when the model is loaded."""
    health = {"path": "/health", "port": PORT}
    gpu = {"nvidia.com/gpu": "1"} if config.processor == "cuda" or config.engine == "vllm" else {}
    container: dict[str, Any] = {
        "name": "serve", "image": config.image, "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": {"httpGet": health, "periodSeconds": 5, "failureThreshold": 120},
        "readinessProbe": {"httpGet": health, "periodSeconds": 5},
        "livenessProbe": {"httpGet": health, "periodSeconds": 20},
        "resources": {"requests": {"cpu": "1", "memory": "4Gi", **gpu}, "limits": gpu},
        "volumeMounts": [{"name": SECRET, "mountPath": str(Path(KEYS).parent), "readOnly": True}],
    }
    if config.engine == "phicli":
        container["securityContext"] = {"runAsNonRoot": True, "runAsUser": 10001, "allowPrivilegeEscalation": False,
                                        "capabilities": {"drop": ["ALL"]}}
    return {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 60, "containers": [container],
            "volumes": [{"name": SECRET, "secret": {"secretName": SECRET}}]}
