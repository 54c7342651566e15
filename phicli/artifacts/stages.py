"""Stage folders: published whole or not at all, each with a manifest (`phicli.json`) that later steps read."""

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from phicli.artifacts.generations import of_one_generation
from phicli.artifacts.hashing import file_hashes
from phicli.artifacts.publishing import leftovers, publishing, publishing_file, settle, write_text, writing
from phicli.artifacts.reading import parse_json, read_bytes, read_json
from phicli.errors import BadInput
from phicli.version import __version__

__all__ = ["leftovers", "publishing", "publishing_file", "settle", "write_text", "writing"]  # of `publishing`
MANIFEST = "phicli.json"
REMOVABLE = "adapters/"  # of a model: files that come and go one by one
OF_DESKTOPS = (".DS_Store", "Thumbs.db", "desktop.ini")
_AGAIN = "phicli run"
TOOLS = ("olive-ai", "onnxruntime-genai-cuda", "onnxruntime-genai", "torch", "transformers", "peft")

_NO_JSON = {"Infinity": sys.float_info.max, "-Infinity": -sys.float_info.max}  # of figures; NaN is then null


@dataclass
class Manifest:
    """What a stage was made from, how, and how well it turned out.

    inputs: name -> fingerprint of what it was. settings: name -> value. versions: package -> version.
    quality: measured figures. files: relative path -> size in bytes. hashes: the same -> as `file_hashes` gives it.
    origins: name of an input -> where it was and what it was made from, as `artifacts/origins.py` describes it.
    """

    step: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    seconds: float = 0.0
    quality: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: str = ""

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def check_types(self) -> None:
        """Raise TypeError if a file has given it something else than the fields say."""
        kinds: dict[str, Any] = {"step": str, "seconds": (int, float), "created": str}
        for name, value in vars(self).items():
            if not isinstance(value, kinds.get(name, dict)):
                raise TypeError(f"'{name}' is {type(value).__name__}")
        for name, kind in (("inputs", str), ("versions", str), ("files", int), ("hashes", str), ("origins", dict)):
            if not all(isinstance(value, kind) for value in getattr(self, name).values()):
                raise TypeError(f"'{name}' holds something else than {kind.__name__}")


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None where there is none.

    Raises:
        BadInput: there is one that cannot be read.
    """
    document = read_sealed(folder / MANIFEST, _AGAIN)
    if document is None:
        return None
    try:
        manifest = Manifest(**document)
        manifest.check_types()
    except TypeError as e:
        raise BadInput(f"damaged: {e}", where=folder / MANIFEST, hint=_AGAIN) from None
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Complete the manifest with versions, the files' sizes and hashes and the date, and write it, atomically."""
    manifest.versions = versions()
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    names = [p.relative_to(folder).as_posix() for p in paths]
    manifest.files = {name: path.stat().st_size for name, path in zip(names, paths, strict=True)}
    manifest.hashes = dict(zip(names, file_hashes(paths), strict=True))
    manifest.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_sealed(folder / MANIFEST, asdict(manifest))


def write_sealed(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON document with a checksum of itself, atomically."""
    plain = json.loads(json.dumps(document), parse_constant=_NO_JSON.get)  # as it will be read
    write_text(path, _sealed(plain))


def read_exactly(path: Path, hint: str) -> dict[str, Any]:
    """What `write_sealed` wrote, every byte of it, blanks too.

    Raises:
        BadInput: a byte is another one. FileNotFoundError: no such file.
    """
    content = read_bytes(path)
    document = parse_json(content, path)
    if not isinstance(document, dict) or document.pop("check", None) is None:
        raise BadInput("damaged: it has no checksum", where=path, hint=hint)
    if _sealed(document).encode() != content:
        raise BadInput("damaged: its checksum does not fit", where=path, hint=hint)
    return document


def read_sealed(path: Path, hint: str) -> dict[str, Any] | None:
    """What `write_sealed` wrote, or an earlier version wrote without a checksum; None where there is no such file.

    Raises:
        BadInput: damaged.
    """
    try:
        document = read_json(path)
        check = document.pop("check", None)
        if check is not None and check != _seal(document):
            raise ValueError("its checksum does not fit")
        return document
    except FileNotFoundError:
        return None
    except (BadInput, ValueError, TypeError, AttributeError, RecursionError) as e:
        raise BadInput(f"damaged: {getattr(e, 'message', e)}", where=path, hint=hint) from None


def _sealed(plain: dict[str, Any]) -> str:
    return json.dumps({**plain, "check": _seal(plain)}, indent=2, ensure_ascii=False) + "\n"


def is_sealed(path: Path) -> bool:
    """Whether a file is one that `write_sealed` has written, unchanged."""
    try:
        return "check" in read_json(path) and read_sealed(path, "") is not None
    except (FileNotFoundError, BadInput, TypeError):
        return False


def _seal(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of phicli and of the libraries that make a difference to results."""
    found = {"phicli": __version__}
    for name in TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def damage(folder: Path, manifest: Manifest, counts: Callable[[str], bool] = lambda name: True) -> str | None:
    """What is wrong with the first file that is not as the step wrote it; None where all are.

    counts: whether the file of a name is looked at. An adapter that the user has removed is no damage.
    """
    names = [name for name in manifest.files if counts(name)
             and not (name.startswith(REMOVABLE) and not (folder / name).exists())]
    for name in names:
        path, need = folder / name, manifest.files[name]
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != need:
            return f"{name} is {'truncated' if size < need else 'too long'}: {size} bytes instead of {need}"
    known = [name for name in names if name in manifest.hashes]
    for name, found in zip(known, file_hashes([folder / name for name in known]), strict=True):
        if found != manifest.hashes[name]:
            return f"{name} has other content than the step wrote"
    return None


def foreign_file(folder: Path, manifest: Manifest) -> str | None:
    """The first file in a stage's folder that the step did not write; None where there is none.

    What file managers leave behind does not count, nor do the files of a stage so old that it does not list its own.
    """
    for path in sorted(folder.rglob("*")) if manifest.files else ():
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in manifest.files and name != MANIFEST and path.name not in OF_DESKTOPS:
            return name
    return None


def check_whole(folder: Path, counts: Callable[[str], bool] = lambda name: True) -> None:
    """Raise BadInput if the folder is a stage's and a file in it is not as the step wrote it; `counts` as above."""
    def check() -> None:
        manifest = read_manifest(folder)
        wrong = manifest and damage(folder, manifest, counts)
        if manifest and wrong:
            raise BadInput(wrong, where=folder, hint=f"phicli {manifest.step}")

    of_one_generation(folder, check)


def fingerprint(path: Path) -> str:
    """A hash of a file's or folder's content and its files' names; a folder's manifest and hidden files do not count.

    Raises:
        BadInput: it cannot be read.
    """
    return fingerprint_of(contents(path))


def contents(path: Path, all_files: bool = False) -> dict[str, str]:
    """The hash of each file that `fingerprint` is of, or of all, by name ("." of a file). Raises as it does."""
    def read() -> dict[str, str]:
        files = [path] if not path.is_dir() else sorted(p for p in path.rglob("*") if p.is_file() and (
            all_files or counts(p.relative_to(path).as_posix())))
        return dict(zip((p.relative_to(path).as_posix() for p in files), file_hashes(files), strict=True))

    try:
        return of_one_generation(path, read)
    except OSError as e:
        raise BadInput(f"cannot be read: {e.strerror}", where=path) from None


def counts(name: str) -> bool:
    """Whether a fingerprint is of a file with this name in a folder; "." is a file by itself."""
    *_, last = parts = name.split("/")
    return name == "." or (last != MANIFEST and not any(part.startswith(".") for part in parts))


def fingerprint_of(files: Mapping[str, str]) -> str:
    """The fingerprint of what has these files."""
    lines = "".join(f"{name}\0{content}\n" for name, content in files.items())
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
