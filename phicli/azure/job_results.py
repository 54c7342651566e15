"""What a job made, into the root: each stage whole or not at all, as if it had been made here."""

import contextlib
from pathlib import Path, PurePosixPath

from phicli.artifacts.locks import held
from phicli.artifacts.names import EVALUATION
from phicli.artifacts.stages import MANIFEST, publishing, publishing_file, read_manifest
from phicli.azure import faults
from phicli.azure.fetching import damaged_files, fetch_files, list_files, range_length
from phicli.azure.job_following import taken_along
from phicli.azure.job_order import ROOT
from phicli.azure.jobs import Job, storage_of
from phicli.azure.on_compute import results
from phicli.azure.part import Part, RemoteFile
from phicli.azure.workspace import Workspace
from phicli.errors import BadInput, RemoteError
from phicli.progress import Progress

JOBS = ".jobs"  # in the root: what is coming


def fetch_results(workspace: Workspace, job: Job, root: Path, progress: Progress) -> list[Path]:
    """Fetch the stages and files that a job made and that differ from those in the root; returns those put there.

    What the job only took along stays as it is here, where it may have been made again since.

    Raises:
        Missing: the job's files have been removed. RemoteError: a damaged copy in the storage. BadInput: names that
            cannot be those of files in a root.
    """
    taken = taken_along(workspace, job)
    with held(root / JOBS, progress):  # who comes second finds all there
        placed = _fetch(workspace, job, taken, root, progress)
        with contextlib.suppress(OSError):
            (root / JOBS).rmdir()
    return placed


def _fetch(workspace: Workspace, job: Job, taken: dict[str, str], root: Path, progress: Progress) -> list[Path]:
    container, place = storage_of(workspace, job)
    with faults.explained(f"results of job {job.name}"):
        files = [file for file in list_files(container, f"{place}/{ROOT}") if _is_result(file.name)]
        folder = root / JOBS / job.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        part, step = Part(folder), range_length(files)
        manifests = [file for file in files if PurePosixPath(file.name).name == MANIFEST or "/" not in file.name]
        part.prepare(files, step)
        fetch_files(container, manifests, part, step)
        made = results(part.files)
        manifests = [file for file in manifests if made.get(file.name) != taken.get(file.name)]
        stages = _stages(manifests)
        wanted = [file for file in files if _belongs(file, stages)
                  and (file in manifests or not _there(root, part.files, file))]
        fetch_files(container, wanted, part, step, progress)
        if damaged_files(wanted, part, step, progress):
            raise RemoteError("not the content that was written (checksum)", where=job.name)
    placed = [_place(root, part.files, stage, progress) for stage in stages]
    part.remove()
    return [path for path in placed if path]


def _is_result(name: str) -> bool:
    """Not what is hidden, nor what a root says of itself."""
    return name == EVALUATION or ("/" in name and "/." not in f"/{name}")


def _stages(manifests: list[RemoteFile]) -> list[str]:
    """Folders with a manifest, and files of the root."""
    return sorted({file.name.removesuffix(f"/{MANIFEST}") for file in manifests})


def _belongs(file: RemoteFile, stages: list[str]) -> bool:
    return any(file.name == stage or file.name.startswith(f"{stage}/") for stage in stages)


def _there(root: Path, come: Path, file: RemoteFile) -> bool:
    """Whether the stage of a file is in the root as the job made it."""
    stage = next((p for p in PurePosixPath(file.name).parents if (come / p / MANIFEST).is_file()), None)
    return stage is not None and _same(root / stage, come / stage)


def _same(here: Path, come: Path) -> bool:
    if not come.is_dir():
        return here.is_file() and here.read_bytes() == come.read_bytes()
    with contextlib.suppress(BadInput):
        return read_manifest(here) == read_manifest(come)
    return False


def _place(root: Path, come: Path, stage: str, progress: Progress) -> Path | None:
    target = root / stage
    if _same(target, come / stage):
        return None
    with held(target, progress):
        if (come / stage).is_dir():
            with publishing(target) as fresh:
                for path in sorted((come / stage).iterdir()):
                    path.rename(fresh / path.name)
        else:
            with publishing_file(target) as fresh:
                (come / stage).rename(fresh)
    return target
