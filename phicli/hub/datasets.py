"""From what a user calls data to files of rows: on this machine, or a data set of the Hugging Face hub."""

import contextlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from phicli.config.places import matching
from phicli.dataset.formats import has_rows
from phicli.dataset.sources import DATA_FILES, Source, find_files, local_path, split_name, split_weight
from phicli.errors import BadInput, Missing, RemoteError
from phicli.libraries import offline_by, online
from phicli.progress import SILENT, Progress

_REFERENCE = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?")  # owner/name[/folder][@revision]

_PINNED = re.compile(r"[0-9a-f]{40}")  # a commit


def find_sources(data: Sequence[str], split: str = "train", progress: Progress = SILENT,
                 local: bool = False) -> list[Source]:
    """The files that are named, each with its weight.

    Args:
        data: each a file, "-" for stdin, a folder, a pattern of files, or a data set of the hub's as owner/name,
            owner/name@revision or owner/name/folder, from the hub's cache or fetched; with ":2" or ":0.5" after it a
            weight.
        split: of a folder or a data set. A file that is named itself is taken whatever the split.
        local: nothing is fetched.

    Raises:
        UsageError: no such split, a weight that is none, or as `find_files`.
        BadInput: no such file, folder or data set, a pipe, or as `find_files`.
        Missing: offline, and not in the cache; or access has to be asked for. RemoteError: the hub cannot be reached.
    """
    split_name(split)
    found = []
    for entry in data:
        name, weight = split_weight(entry)
        paths = [name] if name == "-" else _files(name, split, progress, local)
        found += [Source(path, weight) for path in paths]
    return found


def held_out_sources(name: str, progress: Progress = SILENT, local: bool = False) -> list[Source]:
    """The files of held-out rows: of a folder or a data set its split test, or else validation. local: no fetching.

    Raises:
        As `find_sources`.
    """
    try:
        return find_sources([name], "test", progress, local)
    except BadInput as e:
        try:
            return find_sources([name], "validation", SILENT, local)
        except BadInput:
            raise e from None


@contextlib.contextmanager
def stdin_as_file(data: Sequence[str]) -> Iterator[list[str]]:
    """What is named, with a temporary file in the place of "-", since data are read more than once."""
    with contextlib.ExitStack() as files:
        names = []
        for name in data:
            if name == "-":
                file = files.enter_context(tempfile.NamedTemporaryFile(prefix="phicli-stdin-"))
                shutil.copyfileobj(sys.stdin.buffer, file)
                file.flush()
                name = file.name
            names.append(name)
        yield names


def data_inputs(sources: Sequence[Source], name: str = "data") -> dict[str, Path]:
    """Files as a plan's inputs: data, data 2, data 3 …"""
    return {f"{name} {number}" if number > 1 else name: Path(source.path) for number, source in enumerate(sources, 1)}


def _files(name: str, split: str, progress: Progress, local: bool) -> Sequence[str | Path]:
    path = local_path(name)
    if not path and (found := matching(name)):
        return found
    if path and path.is_fifo():  # such as bash makes of <(COMMAND)
        raise BadInput("not a regular file but a pipe, which can be read once", where=name,
                       hint="a file, or - with what the pipe gives on stdin, as in: phicli finetune --data -")
    path = path or _fetch(name, progress, local)
    return find_files(path, split, progress) if path.is_dir() else [path]


def _fetch(reference: str, progress: Progress, local: bool = False) -> Path:
    """The folder of a data set in the hub's cache; what is not there yet is fetched."""
    import huggingface_hub
    from huggingface_hub import errors as hub

    parts = _REFERENCE.fullmatch(reference)
    typo = parts and parts[2] and Path(parts[1]).parent.exists()  # more likely than a data set of the same name
    if not parts or typo or reference[0] in "./~" or ".." in reference or has_rows(reference):
        raise BadInput("no such file or folder", where=reference,
                       hint="a file, a folder, or a data set of huggingface.co as owner/name")
    name, inside, revision = parts[1], parts[2].strip("/"), parts[3]
    if not local:
        progress.note(f"fetching the data set {name} from huggingface.co (or its cache)")
    wanted = [f"{inside}/{pattern}" if inside else pattern for pattern in DATA_FILES]  # data only, never a script
    try:
        with contextlib.nullcontext() if local else online():
            cached = local or (_PINNED.fullmatch(revision or "") and not _reached(name))
            folder = Path(huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision,
                                                            allow_patterns=wanted, local_files_only=bool(cached)))
    except hub.LocalEntryNotFoundError as e:
        if not local:
            raise _unreached(reference, name, e) from None
        raise Missing("is not on this machine yet", where=reference) from None
    except hub.GatedRepoError:
        raise Missing("access has to be asked for", where=reference,
                      hint=f"https://huggingface.co/datasets/{name}") from None
    except (hub.RepositoryNotFoundError, hub.HFValidationError):
        raise BadInput("no such file or folder, and no such data set on huggingface.co", where=reference,
                       hint="private data sets: hf auth login") from None
    except hub.RevisionNotFoundError:
        raise BadInput(f"the data set has no revision {revision}", where=reference) from None
    except Exception as e:
        raise _unreached(reference, name, e) from None
    folder /= inside
    if not folder.is_dir():
        raise BadInput(f"the data set has no folder {inside} with data files" if inside else
                       "the data set has no data files", where=reference,
                       hint=f"often it is there as Parquet too: {name}@refs/convert/parquet")
    return folder


def _reached(name: str) -> bool:
    """Whether the hub answers. Without an answer huggingface_hub takes what is cached of a branch at once, but of a
    commit only after six requests, 23 s."""
    import huggingface_hub
    from huggingface_hub import errors as hub

    try:
        huggingface_hub.HfApi().dataset_info(name)
    except (hub.HfHubHTTPError, hub.OfflineModeIsEnabled):
        return True
    except Exception:
        return False
    return True


def _unreached(reference: str, name: str, error: Exception) -> Missing | RemoteError:
    from huggingface_hub import errors as hub

    if isinstance(error.__cause__, hub.OfflineModeIsEnabled):
        return Missing(f"no such file or folder, and not in the hub's cache; {offline_by()} keeps it from being "
                       "fetched", where=reference, hint=f"online: hf download --repo-type dataset {name}")
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return RemoteError(f"huggingface.co: {reason}", where=reference, hint="a file or folder works offline")
