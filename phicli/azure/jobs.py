"""Jobs of phicli in a workspace: begun, found again, followed, ended.

A job's name holds a digest of what decides its result, so the same command finds its job again, from any machine. A
job that failed or was cancelled is followed by another in the same place, which goes on from what the first left.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.azure import faults
from phicli.azure.content import Content
from phicli.azure.job_order import PACKAGE, Order, pack, requirements
from phicli.azure.on_compute import LOG, PROGRESS
from phicli.azure.paging import listed
from phicli.azure.staging import plan_upload, upload_content
from phicli.azure.storage import Container
from phicli.azure.workspace import Workspace
from phicli.errors import BadInput, Missing, RemoteError, UsageError
from phicli.progress import Progress, keeping
from phicli.version import __version__

FOLDER, TAG = "phicli/jobs", "phicli.place"  # in the datastore; the tag of a job that says where its files are
DONE, BROKEN = "Completed", ("Failed", "Canceled", "NotResponding")
SHORTEST, LONGEST = 1.0, 15.0  # seconds between two looks
MOST_LOG = 8 << 20  # bytes
PRICES = "https://azure.microsoft.com/pricing/details/machine-learning/"
PYTHON = "3.11"


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
    """The job of an order: the one that is there, or a new one. again: a new one also where one has completed.

    Raises:
        UsageError: settings of compute that do not go together. Missing, RemoteError: as `faults.explained` says.
    """
    check_compute(order)
    with tempfile.TemporaryDirectory(prefix="phicli-job-") as scratch:
        content = pack(order, Path(scratch), progress)
        for number in range(1, 1000):
            name = f"phicli-{order.command}-{order.digest[:16]}" + (f"-{number}" if number > 1 else "")
            found = find(workspace, name)
            if found and found.status not in BROKEN and not (again and found.status == DONE):
                progress.note(f"job {name} is there: {found.status}")
                return found
            if not found:
                return _submit(workspace, order, name, content, progress)
    raise RemoteError("a thousand jobs of this order are there")


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
        return (f"one node of cluster {job.compute} for as long as the job runs, at most {job.hours:g} h, and while the "
                f"cluster keeps it idle; prices of its size: {PRICES}")
    kind = "spot" if job.spot else "dedicated"
    return f"1 x {job.instance_type}, serverless, {kind}, for as long as the job runs, at most {job.hours:g} h; {PRICES}"


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
    return command(
        name=name, display_name=f"phicli {order.command}", experiment_name="phicli",
        command=f"PYTHONPATH=${{{{inputs.job}}}}/{PACKAGE} python -m phicli.azure.on_compute ${{{{inputs.job}}}} "
                "${{outputs.out}}",
        inputs={"job": Input(type="uri_folder", path=f"{address}/in", mode="ro_mount")},
        outputs={"out": Output(type="uri_folder", path=f"{address}/out", mode="rw_mount")},
        environment=Environment(image=job.image, conda_file=conda), tags={TAG: f"{datastore}/{place}", "phicli": __version__},
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


def cancel(workspace: Workspace, name: str) -> None:
    """Ask Azure to end a job; its files stay."""
    get(workspace, name)
    with faults.explained(f"job {name}"):
        workspace.client.jobs.begin_cancel(name).wait(60)


def _job(found: Any) -> Job:
    place = str((found.tags or {}).get(TAG, ""))
    return Job(found.name, str(found.status), place, str(found.display_name or ""), str(found.compute or "serverless"),
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


def state_of(workspace: Workspace, job: Job) -> dict[str, Any]:
    """How far a job's command is, as it last said: task, step, total, figures, error, exit."""
    try:
        found = json.loads(_read(workspace, job, PROGRESS))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def log_of(workspace: Workspace, job: Job) -> str:
    """What a job's command has said so far, its last MOST_LOG bytes."""
    return _read(workspace, job, LOG)


def _read(workspace: Workspace, job: Job, name: str) -> str:
    from azure.core.exceptions import ResourceNotFoundError

    container, place = storage_of(workspace, job)

    def read(client: Any) -> bytes:
        blob = client.get_blob_client(f"{place}/{name}")
        size = blob.get_blob_properties().size
        return blob.download_blob(max(0, size - MOST_LOG), min(size, MOST_LOG)).readall() if size else b""

    with faults.explained(f"job {job.name}"):
        try:
            return str(container.call(read).decode("utf-8", "replace"))
        except ResourceNotFoundError:
            return ""


def follow(workspace: Workspace, job: Job, progress: Progress) -> Job:
    """Wait for the end of a job and show meanwhile how far it is.

    Raises:
        RemoteError: it failed or was cancelled.
    """
    kept = f"job {job.name} goes on; the same command follows it, and this ends it: phicli jobs cancel {job.name}"
    with keeping(lambda: kept):
        for job in _looks(workspace, job, progress):
            pass
    if job.status == DONE:
        return job
    state = state_of(workspace, job)
    raise RemoteError(f"job {job.name}: {job.status}" + (f": {state['error']}" if state.get("error") else ""),
                      hint=f"phicli jobs logs {job.name}; the same command goes on from what it has kept")


def _looks(workspace: Workspace, job: Job, progress: Progress) -> Iterator[Job]:
    """The job again and again until it ends; its tasks become tasks of the progress."""
    pause, status = SHORTEST, job.status
    shown: dict[str, Any] = {}
    task: Any = None
    opened: Any = None
    try:
        while job.status not in (DONE, *BROKEN):
            if job.status != status:
                status = job.status
                progress.note(f"job {job.name}: {status}")
            state = state_of(workspace, job) if job.status == "Running" else {}
            if state.get("task") and state["task"] != shown.get("task"):
                if opened:
                    opened.__exit__(None, None, None)
                opened = progress.task(str(state["task"]), state.get("total"), str(state.get("unit") or ""))
                task, shown = opened.__enter__(), {"task": state["task"]}
            if task and state.get("step") != shown.get("step"):
                task.advance(float(state.get("step") or 0) - float(shown.get("step") or 0), **(state["figures"] or {}))
                shown["step"] = state.get("step")
            time.sleep(pause)
            pause = min(LONGEST, pause * 1.2)
            job = get(workspace, job.name)
            yield job
    finally:
        if opened:
            opened.__exit__(None, None, None)
