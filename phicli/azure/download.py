"""A reference to a folder: the model's files in the cache, or in a folder of the user's choice, whole or not at all."""

import json
import shutil
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from phicli.artifacts.stages import write_text, writing
from phicli.azure import faults
from phicli.azure.fetching import Journal, damaged_files, fetch_files, list_files
from phicli.azure.reference import Reference, parse_reference
from phicli.azure.registry import Registry
from phicli.azure.storage import Container
from phicli.azure.target import Ask, Line, Target, cache_folder, find_target, line_from_settings, nobody
from phicli.azure.workspace import Workspace
from phicli.config.layers import Settings
from phicli.errors import BadInput, RemoteError
from phicli.progress import SILENT, Progress


@dataclass
class Downloaded:
    """Where a model is now. status: "downloaded" or "already there"; bytes_fetched: by this run."""

    status: str
    name: str
    version: str
    path: str
    bytes: int
    bytes_fetched: int
    files: dict[str, int]


def fetch_reference(text: str, progress: Progress = SILENT) -> Path:
    """The folder of a referenced model, with workspace, cache and patience from the settings."""
    settings = Settings()
    reference = parse_reference(text)
    target = None if reference.registry else target_of(reference, settings)
    return Path(download_model(reference, target, cache=cache_folder(settings), line=line_from_settings(settings),
                               progress=progress).path)


def cached_reference(text: str) -> Path | None:
    """The folder of a referenced model if it has been fetched before; asks nobody."""
    settings = Settings()
    reference = parse_reference(text)
    if reference.version is None:
        return None
    target = None if reference.registry else target_of(reference, settings)
    have = _there(_place(cache_folder(settings), reference, target, reference.version), reference, reference.version)
    return Path(have.path) if have else None


def target_of(reference: Reference, settings: Settings, given: dict[str, str | None] | None = None,
              ask: Ask = nobody) -> Target:
    """The workspace of a reference: what it names itself, then flags and settings."""
    named = {k: getattr(reference, k) for k in ("subscription", "resource_group", "workspace_name")}
    return find_target(settings, {k: v or (given or {}).get(k) for k, v in named.items()}, ask)


def download_model(
    reference: Reference, target: Target | None, *, cache: Path, output: Path | None = None, line: Line | None = None,
    progress: Progress = SILENT,
) -> Downloaded:
    """Fetch a model version; one that is there already is not asked for again, unless the latest is wanted.

    Args:
        target: the workspace; None if the reference names a registry. output: a folder instead of one in the cache.

    Raises:
        BadInput: `output` holds something else. Missing, RemoteError: as `faults.explained` says.
    """
    line = line or Line()
    version = reference.version
    if version is not None:
        have = _there(output or _place(cache, reference, target, version), reference, version)
        if have:
            return have
    with faults.explained("download"):
        version, container, prefix = _locate(reference, target, line)
        folder = output or _place(cache, reference, target, version)
        have = _there(folder, reference, version)
        if have:
            return have
        if output and folder.exists() and any(folder.iterdir()):
            raise BadInput("is there and holds something else", where=folder, hint="another --output, or none")
        return _fetch(container, prefix, folder, reference, version, progress)


def _place(cache: Path, reference: Reference, target: Target | None, version: str) -> Path:
    if reference.registry:
        return cache / "registries" / reference.registry / reference.name / version
    assert target is not None
    apart = sha256(target.reference.lower().encode()).hexdigest()[:8]  # the same name in another group is another one
    return cache / "workspaces" / f"{target.workspace_name}-{apart}" / reference.name / version


def _record(folder: Path) -> Path:
    """The file beside a downloaded folder that says what it is; it is not inside, so that the model stays as it was."""
    return folder.with_name(f".{folder.name}.download.json")


def _there(folder: Path, reference: Reference, version: str) -> Downloaded | None:
    try:
        record = json.loads(_record(folder).read_text(encoding="utf-8"))
        if (record["name"], record["version"], record["registry"]) != (reference.name, version, reference.registry):
            return None
        whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not whole:
        return None
    files = record["files"]
    return Downloaded("already there", reference.name, version, str(folder), sum(files.values()), 0, files)


def _locate(reference: Reference, target: Target | None, line: Line) -> tuple[str, Container, str]:
    """(version, container, the files' place in it)."""
    if reference.registry:
        registry = Registry(reference.registry, line)
        version, address = registry.find(reference)
        return version, registry.container(reference.name, version, address), "/".join(address.split("/")[4:])
    assert target is not None
    workspace = Workspace(target, line)
    label = None if reference.version else "latest"
    with faults.explained(f"model '{reference.name}' in workspace '{target.workspace_name}'"):
        model = workspace.client.models.get(reference.name, reference.version, label)
    store, marker, prefix = model.path.partition("/datastores/")[2].partition("/paths/")
    if not marker:
        raise BadInput("its files are in no datastore", where=model.path)
    return str(model.version), workspace.container(store), prefix


def _fetch(container: Container, prefix: str, folder: Path, reference: Reference, version: str,
           progress: Progress) -> Downloaded:
    from filelock import FileLock

    part = folder.with_name(f".{folder.name}.part")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        have = _there(folder, reference, version)  # fetched by another process while we waited
        if have:
            return have
        files = list_files(container, prefix)
        with writing(part):
            part.mkdir(exist_ok=True)
        journal = Journal(part.with_name(part.name + ".journal"))
        fetched = fetch_files(container, files, part, journal, progress)
        wrong = damaged_files(files, part, progress)
        for file in wrong:
            journal.drop(file)
        if wrong:
            fetched += fetch_files(container, wrong, part, journal, progress)
            if damaged_files(wrong, part, progress):
                raise RemoteError("not the content that was uploaded (checksum)", where=wrong[0].name,
                                  hint="the storage's copy is damaged: upload it again")
        sizes = {f.name: f.size for f in files}
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
            journal.path.unlink(missing_ok=True)
        record = {**asdict(reference), "version": version, "files": sizes}
        write_text(_record(folder), json.dumps(record, indent=2) + "\n")
    return Downloaded("downloaded", reference.name, version, str(folder), sum(sizes.values()), fetched, sizes)
