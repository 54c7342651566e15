"""Jobs of phicli in a workspace: begun, found again, followed, ended.

A job's name holds a digest of what decides its result, so the same command finds its job again, from any machine. A
job that failed or was cancelled is followed by another in the same place, which goes on from what the first left.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.azure import faults
from phicli.azure.content import Content
from phicli.azure.job_order import PACKAGE, Order, pack, requirements
from phicli.azure.paging import listed
from phicli.azure.staging import plan_upload, upload_content
from phicli.azure.storage import Container
from phicli.azure.workspace import PRICES, Workspace
from phicli.errors import BadInput, Missing, RemoteError, UsageError
from phicli.progress import Progress
from phicli.version import __version__

FOLDER, TAG = "phicli/jobs", "phicli.place"  # in the datastore; the tag of a job that says where its files are
DONE, BROKEN = "Completed", ("Failed", "Canceled", "NotResponding")
PYTHON = "3.11"
SHARED_MEMORY = "16g"  # through which processes on several GPUs exchange where these have no link of their own
IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04"  # torch brings CUDA's libraries


@dataclass(frozen=True)
class Job:
    """A job as it was found. place: its datastore and its folder in there."""

    name: str
    status: str
    place: str
    command: str
    compute: str
    studio: str


def begin(workspace: Workspace, order: Order, progress: Progress, again: bool = False) -> Job:
    """The job of an order: the last one that is there and has not failed, or a new one. again: a new one also where one
    has completed.

    Raises:
        UsageError: settings of compute that do not go together. Missing, RemoteError: as `faults.explained` says.
    """
    check_compute(order)
    with tempfile.TemporaryDirectory(prefix="phicli-job-") as scratch:
        content = pack(order, Path(scratch), progress)
        there: list[Job] = []
        for number in range(1, 1000):
            name = f"phicli-{order.command}-{order.digest[:16]}" + (f"-{number}" if number > 1 else "")
            if not (found := find(workspace, name)):
                break
            there += [found] if found.status not in BROKEN and not (again and found.status == DONE) else []
        else:
            raise RemoteError("a thousand jobs of this order are there")
        if there:
            progress.note(f"job {there[-1].name} is there: {there[-1].status}")
            return there[-1]
        return _submit(workspace, order, name, content, progress)


def check_compute(order: Order) -> None:
    """Raise UsageError for settings of compute that do not go together."""
    job = order.job
    if job.compute and (job.instance_type or job.spot):
        raise UsageError("a cluster has its own size and its own priority", where="--compute",
                         hint="leave out --instance-type and --spot, or --compute")
    if not job.compute and not job.instance_type:
        raise UsageError("which machine?", where="--on azureml",
                         hint="--compute CLUSTER, or --instance-type Standard_NC24ads_A100_v4 without one")


def costs(order: Order) -> str:
    """What is billed, before it is."""
    job = order.job
    if job.compute:
        return (f"one node of cluster {job.compute} while the job runs, at most {job.hours:g} h, and while the cluster "
                f"keeps it idle; prices of its size: {PRICES}")
    kind = "spot" if job.spot else "dedicated"
    return f"1 x {job.instance_type}, serverless, {kind}, while the job runs, at most {job.hours:g} h; prices: {PRICES}"


def specify(order: Order, name: str, datastore: str) -> Any:
    """The job as azure-ai-ml has it; its files are in that datastore."""
    from azure.ai.ml import Input, Output, command
    from azure.ai.ml.entities import Environment

    place, job = f"{FOLDER}/{order.digest[:32]}", order.job
    address = f"azureml://datastores/{datastore}/paths/{place}"
    conda = {"name": "phicli", "channels": ["conda-forge"],
             "dependencies": [f"python={PYTHON}", "pip>=24", {"pip": requirements()}]}
    machine: dict[str, Any] = {"compute": job.compute} if job.compute else {
        "instance_type": job.instance_type, "instance_count": 1,
        "queue_settings": {"job_tier": "spot" if job.spot else "standard"}}
    if order.on_several_gpus:  # torch's launch for each node: phicli itself starts a process for each GPU
        machine |= {"distribution": {"type": "PyTorch", "process_count_per_instance": 1}, "shm_size": SHARED_MEMORY}
    return command(
        name=name, display_name=f"phicli {order.command}", experiment_name="phicli",
        command=f"python -m zipfile -e ${{{{inputs.job}}}}/{PACKAGE} code && PYTHONPATH=code "
                "python -m phicli.azure.on_compute ${{inputs.job}} ${{outputs.out}}",
        inputs={"job": Input(type="uri_folder", path=f"{address}/in", mode="ro_mount")},
        outputs={"out": Output(type="uri_folder", path=f"{address}/out", mode="rw_mount")},
        environment=Environment(image=IMAGE, conda_file=conda),
        tags={TAG: f"{datastore}/{place}", "phicli": __version__},
        timeout=int(job.hours * 3600), **machine)


def _submit(workspace: Workspace, order: Order, name: str, content: Content, progress: Progress) -> Job:
    container = workspace.container()
    specified = specify(order, name, container.access.datastore)
    place = f"{FOLDER}/{order.digest[:32]}/in"
    progress.note(f"billed: {costs(order)}")
    with faults.explained("files of the job"):
        upload_content(container, content, place, plan_upload(container, content, place), progress)
    with faults.explained(f"job {name}"):
        made = workspace.client.jobs.create_or_update(specified)
    progress.note(f"job {name}: {made.studio_url}")
    return _job(made)


def find(workspace: Workspace, name: str) -> Job | None:
    """The job of a name; None where there is none."""
    from azure.core.exceptions import ResourceNotFoundError

    if not name.strip():  # the SDK makes no address of it
        return None
    with faults.explained(f"job {name}"):
        try:
            return _job(workspace.client.jobs.get(name))
        except ResourceNotFoundError:
            return None


def get(workspace: Workspace, name: str) -> Job:
    """As `find`. Raises Missing: there is none."""
    if found := find(workspace, name):
        return found
    raise Missing(f"no job '{name}'", hint="phicli jobs list")


def list_jobs(workspace: Workspace) -> list[Job]:
    """phicli's jobs in the workspace, the newest first."""
    with faults.explained("jobs"):
        return [_job(job) for job in listed(workspace.client.jobs.list()) if TAG in (job.tags or {})]


def cancel(workspace: Workspace, name: str) -> str:
    """Ask Azure to end a job; its files stay. Returns with which status it has ended already, else nothing."""
    status = get(workspace, name).status
    if status in (DONE, *BROKEN):
        return status
    with faults.explained(f"job {name}"):
        workspace.client.jobs.begin_cancel(name).wait(60)
    return ""


def _job(found: Any) -> Job:
    place = str((found.tags or {}).get(TAG, ""))
    status = str(getattr(found.status, "value", found.status))
    return Job(found.name, status, place, str(found.display_name or ""), str(found.compute or "serverless"),
               str(found.studio_url or ""))


def storage_of(workspace: Workspace, job: Job) -> tuple[Container, str]:
    """Where a job's machine writes: the container, and the folder in it.

    Raises:
        BadInput: the job is none of phicli's.
    """
    datastore, _, place = job.place.partition("/")
    if not place.startswith(f"{FOLDER}/"):
        raise BadInput(f"job '{job.name}' is none of phicli's", hint="phicli jobs list")
    return workspace.container(datastore), f"{place}/out"
