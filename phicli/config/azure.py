"""The settings of what goes to Azure and comes from there."""

from dataclasses import dataclass
from typing import ClassVar

from phicli.config.bases import OfModel
from phicli.config.setting import StepConfig, setting
from phicli.config.shared import RUNNING


@dataclass(frozen=True)
class WorkspaceConfig(StepConfig):
    """Which Azure ML workspace is meant."""

    STEP: ClassVar[str] = "azure"

    workspace_name: str | None = setting(None, "Azure ML workspace")
    resource_group: str | None = setting(None, "Azure resource group")
    subscription: str | None = setting(None, "Azure subscription id")


@dataclass(frozen=True)
class UploadConfig(OfModel):
    """Settings of `phicli upload`."""

    STEP: ClassVar[str] = "upload"

    path: str | None = setting(None, "Folder to upload [default: the optimized model under the root]", once=True,
                               path=True)
    name: str = setting("ft-for-travel", "Name of the model in Azure ML")
    version: str | None = setting(None, "Version of the model [default: the next free number]")
    description: str | None = setting(None, "Description of the model")


@dataclass(frozen=True)
class TransferConfig(StepConfig):
    """How to transfer files to and from Azure, and where to keep what was downloaded."""

    STEP: ClassVar[str] = "azure"

    cache: str | None = setting(None, "Folder for downloaded models [default: in the user's cache folder]", path=True)
    connections: int = setting(8, "Parallel transfers", minimum=1)
    retries: int = setting(3, "Retries of a failed request", minimum=0)
    timeout: float = setting(60.0, "Seconds to wait for an answer", minimum=0.1)


@dataclass(frozen=True)
class JobConfig(StepConfig):
    """Where a long step runs, and what it runs on."""

    STEP: ClassVar[str] = "job"

    on: str | None = setting(None, "Run as a job in Azure ML [default: on this machine]", choices=("azureml",),
                             panel=RUNNING, recorded=False)
    compute: str | None = setting(None, "Compute cluster [default: none, serverless]", panel=RUNNING, recorded=False)
    instance_type: str | None = setting(None, "Size of a serverless machine, such as Standard_NC24ads_A100_v4",
                                        panel=RUNNING, recorded=False)
    spot: bool = setting(False, "Serverless on capacity that others do not need: cheaper, may be interrupted",
                         flags=("--spot/--no-spot",), panel=RUNNING, recorded=False)
    hours: float = setting(12.0, "Hours after which Azure ends the job [default: 12]", above=0, maximum=720,
                           panel=RUNNING, recorded=False)
    wait: bool = setting(True, "Follow the job and fetch its results", flags=("--wait/--no-wait",), panel=RUNNING,
                         recorded=False)
