"""The settings of `phicli deploy`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from phicli.config.azure import WorkspaceConfig
from phicli.config.bases import OfModel
from phicli.config.setting import setting, settings_of
from phicli.errors import UsageError

IMAGE, ENDPOINT = "Image and Kubernetes", "Azure ML"  # headings of help
LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1035, as a Service of Kubernetes is named
IMAGE_NAME = re.compile(r"[a-z0-9][\w./:@-]*", re.ASCII | re.IGNORECASE)
ENDPOINT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")


@dataclass(frozen=True)
class DeployConfig(OfModel):
    """Where a model is served, by what, on what."""

    STEP: ClassVar[str] = "deploy"

    to: str = setting("azureml", "What to deploy to: an endpoint in Azure ML, a folder for docker build, or manifests",
                      choices=("azureml", "docker", "kubernetes", "kserve"))
    name: str = setting("phicli", "Name of the endpoint or service")
    engine: str = setting("phicli", "What serves: phicli itself, or vLLM with the AWQ checkpoint and the adapters",
                          choices=("phicli", "vllm"))
    processor: str = setting("cpu", "What it runs on; vLLM always on a GPU", choices=("cpu", "cuda"))
    deployment: str = setting("blue", "Name of the deployment behind the endpoint", panel=ENDPOINT)
    traffic: int = setting(100, "Percentage of requests for this deployment; the others share the rest", minimum=0,
                           maximum=100, panel=ENDPOINT)
    instance_type: str | None = setting(None, "Size of a machine in Azure ML, such as Standard_DS3_v2")
    instances: int = setting(1, "Number of machines or pods", minimum=1)
    most_instances: int | None = setting(None, "Scale up to this many under load [default: no scaling]", minimum=2)
    question: str = setting("Where should I go in spring?", "Question of the smoke test", panel=ENDPOINT)
    image: str = setting("phicli-serve:latest", "Image that the manifests name", panel=IMAGE)
    namespace: str = setting("default", "Namespace of the manifests", panel=IMAGE)
    vllm_image: str = setting("vllm/vllm-openai:v0.20.2", "Image that has vLLM", panel=IMAGE)
    output: str | None = setting(None, "Folder or file to write [default: ROOT/deploy/…]", once=True, path=True,
                                 flags=("--output", "-o"), recorded=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, name in (("--name", self.name), ("--deployment", self.deployment)):
            if self.to == "azureml" and not ENDPOINT_NAME.fullmatch(name):
                raise UsageError("3 to 32 letters, digits and '-', a letter first", where=option)
        for option, name in (("--name", self.name), ("--namespace", self.namespace)):
            if self.to != "azureml" and not LABEL.fullmatch(name):
                raise UsageError("up to 63 small letters, digits and '-', a letter first", where=option)
        for option, name in (("--image", self.image), ("--vllm-image", self.vllm_image)):
            if not IMAGE_NAME.fullmatch(name):
                raise UsageError(f"'{name}' is no name of an image", where=option,
                                 hint="phicli deploy --image phicli-serve:latest" if option == "--image" else None)
        if self.most_instances is not None and self.most_instances < self.instances:
            raise UsageError(f"fewer than --instances, {self.instances}", where="--most-instances")


_OF_AZURE = ("deployment", "traffic", "instance_type", "question", *settings_of(WorkspaceConfig))
_OF_MANIFESTS = ("instances", "most_instances", "namespace")
# What changes nothing for what is deployed to, for what serves there, or where an endpoint is deleted
IDLE: Mapping[str, tuple[str, ...]] = {
    "azureml": ("image", "namespace", "output"), "docker": ("name", *_OF_AZURE, *_OF_MANIFESTS),
    **dict.fromkeys(("kubernetes", "kserve"), (*_OF_AZURE, "vllm_image")),
    "vllm": ("processor",), "phicli": ("vllm_image",),
    "--delete": tuple(name for name in settings_of(DeployConfig) if name not in ("model", "root", "to", "name"))}
