"""One model version: which number it gets, its files in the workspace's storage, its entry in the workspace."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phicli.azure import faults
from phicli.azure.content import Content, hash_content, list_content
from phicli.azure.describe import describe
from phicli.azure.paging import listed
from phicli.azure.reference import check_name
from phicli.azure.staging import plan_upload, upload_content
from phicli.azure.target import Target
from phicli.azure.workspace import Workspace
from phicli.config.azure import TransferConfig
from phicli.errors import BadInput, Missing, RemoteError
from phicli.progress import SILENT, Progress

DIGEST = "phicli.digest"  # the property of a version that tells its content
FOLDER = "phicli"  # in the datastore
TRIES = 5  # at a free version number, when others take one after the other
REGISTERED, THERE, DRY_RUN = "registered", "already there", "dry run"


@dataclass
class Uploaded:
    """What an upload did, or with `dry_run` would do. bytes_sent: of this run; staged before does not count."""

    status: str
    name: str
    version: str
    reference: str
    bytes: int
    bytes_sent: int = 0
    destination: str = ""
    files: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return asdict(self)


def upload_model(
    path: Path, name: str, target: Target, *, version: str | None = None, description: str | None = None,
    tags: dict[str, str] | None = None, base_model: str | None = None, dry_run: bool = False,
    transfer: TransferConfig | None = None, progress: Progress = SILENT,
) -> Uploaded:
    """Upload a folder and register it as a version of a model; the version exists when all of it is there.

    Args:
        path: the folder. version: None takes the next free number.
        tags: beside those that the manifests give. base_model: its name, where they do not.
        dry_run: only look, write nothing.

    Returns:
        status "already there" if a version (with `version`: that one) has this content.

    Raises:
        BadInput: nothing to upload, or `version` holds other content; the hint names the next free one.
        Missing, RemoteError: as `faults.explained` says.
    """
    check_name(name, "name")
    if version is not None:
        check_name(version, "version")
    content = list_content(path)
    workspace = Workspace(target, transfer or TransferConfig())
    for hidden in content.left_out:
        progress.note(f"not uploaded, since it is hidden: {hidden}")
    versions = _versions(workspace, name)
    content = hash_content(content, progress)
    properties, known_tags = describe(path, base_model)
    result = Uploaded("", name, "", "", content.bytes, files={f.name: f.size for f in content.files},
                      left_out=list(content.left_out), tags={**known_tags, **(tags or {})})

    def finish(status: str, number: str) -> Uploaded:
        result.status, result.version = status, number
        result.reference = f"{target.reference}/models/{name}/versions/{number}"
        return result

    number, there = choose_version(versions, version, content.digest, name)
    if there:
        return finish(THERE, number)
    _send(workspace, content, result, dry_run, progress)
    if dry_run:
        return finish(DRY_RUN, number)
    for _ in range(TRIES):
        if _register(workspace, result, number, description, {**properties, DIGEST: content.digest}):
            return finish(REGISTERED, number)
        number, there = choose_version(_versions(workspace, name), version, content.digest, name)
        if there:
            return finish(THERE, number)
    raise RemoteError(f"no free version of '{name}' in {TRIES} tries: others take them", hint=faults.RESUMES)


def choose_version(versions: dict[str, str], wanted: str | None, digest: str, name: str) -> tuple[str, bool]:
    """The version to register, and whether it is there with this content already.

    Args:
        versions: version -> digest of its content.

    Raises:
        BadInput: the wanted one is there with other content.
    """
    free = str(max((int(v) for v in versions if v.isdecimal()), default=0) + 1)
    if wanted is None:
        same = next((v for v, have in versions.items() if have == digest), None)
        return (same, True) if same else (free, False)
    if wanted not in versions:
        return wanted, False
    if versions[wanted] == digest:
        return wanted, True
    raise BadInput(f"version {wanted} of '{name}' is there, with other content", hint=f"--version {free}")


def _versions(workspace: Workspace, name: str) -> dict[str, str]:
    """All versions of a model, archived ones too, newest first, with their content's digest where we uploaded it."""
    from azure.ai.ml.constants import ListViewType
    from azure.core.exceptions import ResourceNotFoundError

    with faults.explained(f"versions of '{name}'"):
        try:
            there = listed(workspace.client.models.list(name, list_view_type=ListViewType.ALL))
        except ResourceNotFoundError:
            return {}
    return {str(m.version): (m.properties or {}).get(DIGEST, "") for m in there}


def _send(workspace: Workspace, content: Content, result: Uploaded, dry_run: bool, progress: Progress) -> None:
    container = workspace.container()
    folder = f"{FOLDER}/{result.name}/{content.digest[:32]}"
    with faults.explained("upload"):
        plan = plan_upload(container, content, folder)
        result.destination = f"{container.access.datastore}/{folder}"
        if dry_run:
            result.bytes_sent = sum(length for f in content.files for _, _, length in plan.missing(f))
        else:
            result.bytes_sent = upload_content(container, content, folder, plan, progress)


def _register(workspace: Workspace, result: Uploaded, number: str, description: str | None,
              properties: dict[str, str]) -> bool:
    """Make the entry; False if the version was taken meanwhile.

    Whether it failed is told by what is there afterwards, not by the error's words: an answer can be lost on its way.
    """
    from azure.ai.ml.entities import Model
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError

    datastore, _, folder = result.destination.partition("/")
    address = f"{workspace.target.reference}/datastores/{datastore}/paths/{folder}".replace(
        "/resourceGroups/", "/resourcegroups/")
    model = Model(name=result.name, version=number, path=address, type="custom_model", description=description,
                  tags=result.tags, properties=properties)
    if number in _versions(workspace, result.name):
        return False
    with faults.explained(f"registering {result.name}:{number}"):
        try:
            workspace.client.models.create_or_update(model)
            return True
        except (AzureError, MlException) as e:
            try:
                have = _versions(workspace, result.name).get(number)
            except (Missing, RemoteError):
                raise e from None
            if have is None:
                raise
            return have == properties[DIGEST]
