"""What a job in a workspace tells while it runs: its log, how far it is, its end."""

import json
import time
from contextlib import ExitStack
from typing import Any, Self

from phicli.azure import faults
from phicli.azure.jobs import BROKEN, DONE, Job, get, storage_of
from phicli.azure.on_compute import LOG, PROGRESS, TAKEN
from phicli.azure.storage import Container
from phicli.azure.transport import RANGE
from phicli.azure.workspace import Workspace
from phicli.errors import Missing, RemoteError
from phicli.progress import Progress, keeping

SHORTEST, LONGEST = 1.0, 15.0  # seconds between two looks
MOST_LOG = 8 << 20  # bytes


def state_of(workspace: Workspace, job: Job) -> dict[str, Any]:
    """How far a job's command is, as it last said: task, step, total, figures, error, exit."""
    return _state(*storage_of(workspace, job))


def log_of(workspace: Workspace, job: Job) -> str:
    """What a job's command has said so far, its last MOST_LOG bytes."""
    return _read(*storage_of(workspace, job), LOG)


def taken_along(workspace: Workspace, job: Job) -> dict[str, str]:
    """What was in the root that a job began with, as `on_compute.results` tells it.

    Raises:
        Missing: the job's files have been removed.
    """
    found = _object(*storage_of(workspace, job), TAKEN)
    if found is None:
        raise Missing(f"the files of job {job.name} are gone from the storage", where=job.place,
                      hint="the same command with --force begins another job")
    return found


def _object(container: Container, place: str, name: str) -> dict[str, Any] | None:
    try:
        found = json.loads(_read(container, place, name))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _state(container: Container, place: str) -> dict[str, Any]:
    return _object(container, place, PROGRESS) or {}


def _read(container: Container, place: str, name: str) -> str:
    from azure.core.exceptions import ResourceNotFoundError

    def read(client: Any) -> bytes:
        blob = client.get_blob_client(f"{place}/{name}")
        size = blob.get_blob_properties().size
        parts = range(max(0, size - MOST_LOG), size, RANGE)
        return b"".join(blob.download_blob(begin, min(RANGE, size - begin)).readall() for begin in parts)

    with faults.explained(f"job's {name}"):
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
    container, place = storage_of(workspace, job)
    pause, state = SHORTEST, dict[str, Any]()
    with keeping(lambda: kept), Shown(progress) as shown:
        while True:
            if shown.status(job) != "NotStarted":
                shown.state(state := _state(container, place))
            if job.status in (DONE, *BROKEN):
                break
            time.sleep(pause)
            pause = min(LONGEST, pause * 1.2)
            job = get(workspace, job.name)
    if job.status == DONE:
        return job
    raise RemoteError(f"job {job.name}: {job.status}" + (f": {state['error']}" if state.get("error") else ""),
                      hint=f"phicli jobs logs {job.name}",
                      also=["the same command again, which goes on from what it has kept"])


class Shown:
    """What a job's command reports, reported again here: its tasks become tasks of the progress."""

    def __init__(self, progress: Progress):
        self.progress, self.ending = progress, ExitStack()
        self.task: Any = None
        self.title, self.step, self.last = "", 0.0, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.ending.__exit__(*exc)

    def status(self, job: Job) -> str:
        if job.status != self.last and self.last:
            self.progress.note(f"job {job.name}: {job.status}")
        self.last = job.status
        return job.status

    def state(self, found: dict[str, Any]) -> None:
        title, step, total = found.get("task"), found.get("step"), found.get("total")
        if not isinstance(title, str) or not isinstance(step, int | float):
            return
        if title != self.title:
            self.ending.close()
            task = self.progress.task(title, total if isinstance(total, int | float) else None, str(found.get("unit")))
            self.task, self.title, self.step = self.ending.enter_context(task), title, 0.0
        if step != self.step:
            figures = found.get("figures")
            self.task.advance(step - self.step, **(figures if isinstance(figures, dict) else {}))
            self.step = step
