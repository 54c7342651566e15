"""A reference to a folder: the model's files in the cache, or in a folder of the user's choice, whole or not at all."""

import contextlib
import os
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from phicli.artifacts.locks import held
from phicli.artifacts.stages import check_whole, counts, writing
from phicli.azure import faults
from phicli.azure.fetching import damaged_files, fetch_files, list_files, range_length
from phicli.azure.part import Part
from phicli.azure.record import ANOTHER, Identity, files_of, identity_of, record_path, write_record
from phicli.azure.reference import Reference, check_name, parse_reference
from phicli.azure.registry import Registry
from phicli.azure.storage import Container
from phicli.azure.target import Ask, Target, cache_folder, check_cache, find_target, nobody
from phicli.azure.workspace import Workspace
from phicli.config.azure import TransferConfig
from phicli.config.layers import Settings
from phicli.errors import BadInput, Missing, RemoteError
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
    return Path(download_model(reference, target, cache=cache_folder(settings),
                               transfer=settings.resolve(TransferConfig), progress=progress).path)


def cached_reference(text: str) -> Path | None:
    """The folder of a referenced model if it has been fetched before, whole; asks nobody."""
    settings = Settings()
    reference = parse_reference(text)
    if reference.version is None:
        return None
    target = None if reference.registry else target_of(reference, settings)
    cache = cache_folder(settings)
    with contextlib.suppress(BadInput, Missing):  # which fetching says, with words
        check_cache(cache)
        have = _there(_place(cache, reference, target, reference.version),
                      identity_of(reference, target, reference.version))
        return Path(have.path) if have else None
    return None


def target_of(reference: Reference, settings: Settings, given: dict[str, str | None] | None = None,
              ask: Ask = nobody) -> Target:
    """The workspace of a reference: what it names itself, then flags and settings."""
    named = {k: getattr(reference, k) for k in ("subscription", "resource_group", "workspace_name")}
    return find_target(settings, {k: v or (given or {}).get(k) for k, v in named.items()}, ask)


def download_model(
    reference: Reference, target: Target | None, *, cache: Path, output: Path | None = None,
    transfer: TransferConfig | None = None, progress: Progress = SILENT,
) -> Downloaded:
    """Fetch a model version; one that is there already is not asked for again, unless the latest is wanted.

    Args:
        target: the workspace; None if the reference names a registry. output: a folder instead of one in the cache.

    Raises:
        BadInput: `output` holds something else, or names in the storage cannot become paths.
        Missing, RemoteError: as `faults.explained` says.
    """
    transfer = transfer or TransferConfig()
    if output:
        if output.is_symlink() and not output.exists():
            raise BadInput("a link to nothing", where=output, hint=ANOTHER)
        output = Path(os.path.realpath(output))  # a link to a folder stays one
    else:
        check_cache(cache)
    version = reference.version
    if version is not None:
        have = _there(output or _place(cache, reference, target, version), identity_of(reference, target, version),
                      mine=bool(output))
        if have:
            return have
    with faults.explained("download"):
        version, container, prefix = _locate(reference, target, transfer)
        if check_name(version, "version") != (reference.version or version):
            raise RemoteError(f"version {version} was given for {reference.version}", where=reference.name)
        folder, model = output or _place(cache, reference, target, version), identity_of(reference, target, version)
        with held(folder, progress):
            have = _there(folder, model, mine=bool(output))  # the latest, or fetched by another while we waited
            return have or _fetch(container, prefix, folder, model, progress)


def _place(cache: Path, reference: Reference, target: Target | None, version: str) -> Path:
    """A model's place in the cache; every part of it has been checked as a name."""
    if reference.registry:
        return cache / "registries" / reference.registry / reference.name / version
    assert target is not None
    apart = sha256(target.reference.lower().encode()).hexdigest()[:8]  # the same name in another group is another one
    workspace = check_name(target.workspace_name, "workspace")
    return cache / "workspaces" / f"{workspace}-{apart}" / reference.name / version


def _there(folder: Path, model: Identity, mine: bool = False) -> Downloaded | None:
    """The model in a folder, if it is whole.

    mine: the folder is of the user's choice, so that nothing in it is replaced: something else is BadInput.
    """
    try:
        files = files_of(folder, model)
    except (BadInput, OSError) as e:
        if not mine:
            return None
        if isinstance(e, BadInput):
            raise
        raise BadInput(f"cannot be read: {e.strerror}", where=folder) from None
    if files is None:
        return None
    return Downloaded("already there", model.name, model.version, str(folder), sum(files.values()), 0, files)


def _locate(reference: Reference, target: Target | None, transfer: TransferConfig) -> tuple[str, Container, str]:
    """(version, container, the files' place in it)."""
    if reference.registry:
        registry = Registry(reference.registry, transfer)
        version, address = registry.find(reference)
        return version, registry.container(reference.name, version, address), "/".join(address.split("/")[4:])
    assert target is not None
    workspace = Workspace(target, transfer)
    label = None if reference.version else "latest"
    with faults.explained(f"model '{reference.name}' in workspace '{target.workspace_name}'"):
        model = workspace.client.models.get(reference.name, reference.version, label)
    place = re.fullmatch(r".*/datastores/([\w-]+)/paths/(.*)", model.path or "")
    if not place:
        raise BadInput("its files are in no datastore", where=model.path)
    return str(model.version), workspace.container(place[1]), place[2]


def _fetch(container: Container, prefix: str, folder: Path, model: Identity, progress: Progress) -> Downloaded:
    files = list_files(container, prefix)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    part, step = Part(folder), range_length(files)
    part.prepare(files, step)
    fetched = fetch_files(container, files, part, step, progress)
    wrong = damaged_files(files, part, step, progress)
    for file in wrong:
        part.drop(file)
    if wrong:
        fetched += fetch_files(container, wrong, part, step, progress)
        if damaged_files(wrong, part, step, progress):
            raise RemoteError("not the content that was uploaded (checksum)", where=wrong[0].name,
                              hint="the storage's copy is damaged: upload it again")
    _check_manifest(part.files)
    record = record_path(folder)
    write_record(part.path / record.name, model, part.files, [f.name for f in files])
    part.publish(folder, record)
    sizes = {f.name: f.size for f in files}
    return Downloaded("downloaded", model.name, model.version, str(folder), sum(sizes.values()), fetched, sizes)


def _check_manifest(folder: Path) -> None:
    """Raise RemoteError where a manifest came along and the files are not those that it was written for."""
    try:
        check_whole(folder, counts)  # hidden files are not uploaded
    except BadInput as e:
        raise RemoteError(f"not what the step made: {e.message}", where=Path(str(e.where)).name,
                          hint="the storage's copy is damaged: upload it again") from None
