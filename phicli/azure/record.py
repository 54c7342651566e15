"""What a downloaded folder is, told by a file beside it, so that the model stays as it was uploaded."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from phicli.artifacts.hashing import file_hashes
from phicli.artifacts.stages import read_sealed, write_sealed
from phicli.azure.names import check_file_names
from phicli.azure.reference import Reference
from phicli.azure.target import Target
from phicli.errors import BadInput

ANOTHER = "another --output, or none"


@dataclass(frozen=True)
class Identity:
    """Which model it is. source: the registry's or workspace's full name."""

    source: str
    name: str
    version: str


def identity_of(reference: Reference, target: Target | None, version: str) -> Identity:
    source = target.reference.lower() if target else f"azureml://registries/{reference.registry}"
    return Identity(source, reference.name, version)


def record_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.download.json")


def write_record(path: Path, model: Identity, files: Path, names: list[str]) -> None:
    """Note the hashes of a model's files."""
    sizes = {name: (files / name).stat().st_size for name in names}
    hashes = dict(zip(names, file_hashes([files / name for name in names]), strict=True))
    write_sealed(path, {**vars(model), "files": sizes, "hashes": hashes})


def files_of(folder: Path, model: Identity) -> dict[str, int] | None:
    """Names and sizes of the files in a folder that holds this model, whole; None where nothing is there.

    Raises:
        BadInput: something else is there, or not as it was downloaded.
    """
    record = record_path(folder)
    if os.path.lexists(record) and not stat.S_ISREG(record.lstat().st_mode):
        raise BadInput("is there and is no record of a download", where=record, hint=f"remove it, or {ANOTHER}")
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir():
        raise BadInput("is there and is no folder", where=folder, hint=ANOTHER)
    document = _read(record)
    if document is None or any(document.get(key) != value for key, value in vars(model).items()):
        raise BadInput(f"is there and holds something else than {model.name}:{model.version} of {model.source}",
                       where=folder, hint=ANOTHER)
    hashes: dict[str, str] = document["hashes"]
    if wrong := _wrong(folder, document["files"], hashes):
        raise BadInput(wrong, where=folder, hint=f"remove it to download it again, or {ANOTHER}")
    return document["files"]


def _wrong(folder: Path, sizes: dict[str, int], hashes: dict[str, str]) -> str | None:
    for where, inner, here in os.walk(folder):
        for name in [*here, *(n for n in inner if (Path(where) / n).is_symlink())]:
            file = (Path(where) / name).relative_to(folder).as_posix()
            if file not in sizes and not any(part.startswith(".") for part in file.split("/")):
                return f"{file!r} is not the model's"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name!r} is missing or has another size"
    found = file_hashes([folder / name for name in hashes])
    return next((f"{name!r} has other content than was downloaded"
                 for name, hash_ in zip(hashes, found, strict=True) if hashes[name] != hash_), None)


def _read(path: Path) -> dict | None:
    """The record, if this user or root wrote it."""
    try:
        if os.name != "nt" and path.lstat().st_uid not in (0, os.getuid()):
            return None
        document = read_sealed(path, "")
        assert document is not None
        check_file_names(document["files"])
        if document["files"].keys() != document["hashes"].keys():
            return None
        return document
    except (OSError, BadInput, AssertionError, KeyError, TypeError, AttributeError):
        return None
