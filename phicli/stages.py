"""Stage folders: published whole or not at all, each with a manifest (`phicli.json`) that later steps read."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import phicli
from phicli.errors import BadInput, Missing, PhicliError
from phicli.progress import Progress

MANIFEST = "phicli.json"
CERTAIN_UP_TO = 64 << 20  # bytes of a file that is hashed whole; of a larger one, samples
SAMPLES, SAMPLE_BYTES = 64, 64 << 10
TOOLS = ("olive-ai", "onnxruntime-genai-cuda", "onnxruntime-genai", "torch", "transformers", "peft")


@dataclass
class Manifest:
    """What a stage was made from, how, and how well it turned out.

    inputs: name -> fingerprint of what it was. settings: name -> value. versions: package -> version.
    quality: measured figures. files: relative path -> size in bytes.
    """

    step: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    seconds: float = 0.0
    quality: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    created: str = ""

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None where there is none.

    Raises:
        BadInput: there is one that cannot be read.
    """
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(**document)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as e:
        raise BadInput(f"damaged manifest: {e}", where=path, hint="run that step again with --force") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Complete the manifest with versions, file sizes and the date, and write it into the folder, atomically."""
    manifest.versions = versions()
    manifest.files = {
        p.relative_to(folder).as_posix(): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    manifest.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of phicli and of the libraries that make a difference to results."""
    found = {"phicli": phicli.__version__}
    for name in TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def why_stale(folder: Path, step: str, inputs: dict[str, str], settings: dict[str, Any],
              apart: str | None = None) -> str | None:
    """Why the folder is not the result of these inputs, settings and tool versions; None when it is.

    apart: inputs and files whose names begin with it do not count; the caller judges them.
    """
    if not folder.is_dir():
        return "not made yet"
    try:
        have = read_manifest(folder)
    except BadInput as e:
        return e.message
    if have is None or have.step != step:
        return "made by something else"
    for what, old, new in (("input", have.inputs, inputs), ("setting", have.settings, settings),
                           ("version of", have.versions, versions())):
        changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)
                         and not (apart and k.startswith(apart)))
        if changed:
            return f"changed {what} {', '.join(changed)}"
    for name, length in have.files.items():
        path = folder / name
        if apart and name.startswith(apart):
            continue
        if not path.is_file() or path.stat().st_size != length:
            return f"damaged file {name}"
    return None


def finished(folder: Path, step: str, inputs: dict[str, str], settings: dict[str, Any], *, force: bool,
             progress: Progress) -> Manifest | None:
    """The manifest of a result that is up to date; None where it has to be made. Says aloud which, and why."""
    reason = "asked for" if force else why_stale(folder, step, inputs, settings)
    if reason is None:
        progress.note(f"{folder} is up to date")
        return read_manifest(folder)
    if folder.is_dir():
        progress.note(f"{folder} is made again: {reason}")
    return None


def fingerprint(path: Path) -> str:
    """A hash of a file's or folder's content: certain for files up to 64 MB, samples and size for larger ones.

    A folder's manifest and hidden files do not count. Raises BadInput if it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = [path] if path.is_file() else sorted(
            p for p in path.rglob("*")
            if p.is_file() and p.name != MANIFEST and not any(q.startswith(".") for q in p.relative_to(path).parts)
        )
        for file in files:
            name = "" if file == path else file.relative_to(path).as_posix()
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            _hash_content(file, digest)
    except OSError as e:
        raise BadInput(f"cannot be read: {e.strerror}", where=path) from None
    return digest.hexdigest()


def _hash_content(file: Path, digest: Any) -> None:
    length = file.stat().st_size
    with file.open("rb") as f:
        if length <= CERTAIN_UP_TO:
            while block := f.read(1 << 20):
                digest.update(block)
            return
        for k in range(SAMPLES):
            f.seek((length - SAMPLE_BYTES) * k // (SAMPLES - 1))
            digest.update(f.read(SAMPLE_BYTES))
        digest.update(str(file.stat().st_mtime_ns).encode())


@contextlib.contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well and is removed if not.

    What was at `folder` stays until then, whatever happens; `settle` cleans up after a kill.

    Raises:
        Missing: no space or no permission.
    """
    folder = Path(folder).absolute()
    fresh, old = folder.with_name(f".{folder.name}.new-{os.getpid()}"), folder.with_name(f".{folder.name}.old")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        settle(folder)
        fresh.mkdir()
    try:
        with writing(folder):
            yield fresh
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def settle(folder: Path) -> None:
    """Undo what a killed `publishing` of this folder left: half-written folders go, a displaced result returns."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir():
        shutil.rmtree(old) if folder.exists() else old.rename(folder)
    for left in folder.parent.glob(f".{folder.name}.new-*"):
        if not _alive(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or all of the new."""
    with writing(path):
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into a Missing error that names the place."""
    try:
        yield
    except PhicliError:
        raise
    except OSError as e:
        if e.errno in _REFUSALS:
            raise Missing(f"cannot be written: {e.strerror}", where=where, hint=_REFUSALS[e.errno]) from e
        raise


_REFUSALS = {
    28: "free some space, or choose another folder with --root or --output",  # ENOSPC
    27: "the file system or a limit allows no file of that size",  # EFBIG
    122: "free some space, or choose another folder with --root or --output",  # EDQUOT
    13: "choose another folder with --root or --output",  # EACCES
    1: "choose another folder with --root or --output",  # EPERM
    30: "choose another folder with --root or --output",  # EROFS
    20: "a file stands where a folder is needed",  # ENOTDIR
    17: "a file stands where a folder is needed",  # EEXIST
}
