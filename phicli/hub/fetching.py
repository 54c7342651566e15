"""Models and files of the Hugging Face hub, from its cache on this machine or fetched into it."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phicli.errors import BadInput, Missing, PhicliError, RemoteError
from phicli.hub.remote_file import NoParts, RemoteFile
from phicli.libraries import offline_by, online, user_is_offline
from phicli.progress import Progress

WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]  # never a pickle, never code

ONE_FILE = "of a repository of GGUF files, one of them: owner/name/FILE.gguf"


def fetch_model(reference: str, judge: Callable[[Path], Any], progress: Progress) -> Path:
    """The folder of a model, whose config.json is judged before its weights are fetched. Raises as `_explained`."""
    import huggingface_hub

    progress.note(f"fetching {reference} from huggingface.co (or its cache)")
    with _explained(reference):
        folder = Path(huggingface_hub.snapshot_download(reference, allow_patterns=["config.json"]))
        if not (folder / "config.json").is_file():
            raise BadInput("the repository has no config.json", where=reference, hint=ONE_FILE)
        judge(folder)
        return Path(huggingface_hub.snapshot_download(reference, allow_patterns=WANTED))


def ask_for(reference: str) -> None:
    """Ask the hub for a model's config.json, or for a file as owner/name/file; fetches nothing. Raises as
    `_explained`."""
    import huggingface_hub

    name, file = _parts(reference)
    if user_is_offline():
        raise offline(reference)
    with _explained(reference):
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(name, file or "config.json"))


def offline(reference: str) -> Missing:
    """What keeps a model that is not here from being fetched where the user is offline."""
    return Missing(f"no such folder, and not in the hub's cache; {offline_by()} keeps it from being fetched",
                   where=reference, hint=f"online: {_fetching(reference)}")


def fetch_config(reference: str) -> Path:
    """The folder with a model's config.json, of which nothing else is fetched. Raises as `_explained`."""
    import huggingface_hub

    with _explained(reference):
        return Path(huggingface_hub.hf_hub_download(reference, "config.json")).parent


def fetch_file(reference: str, judge: Callable[[RemoteFile], Any], progress: Progress) -> Path:
    """A file, as owner/name/file, which is judged before it is fetched. Raises as `_explained`."""
    import huggingface_hub

    name, file = _parts(reference)
    progress.note(f"fetching {file} of {name} from huggingface.co (or its cache)")
    with _explained(reference):
        if huggingface_hub.hf_hub_download(name, file, dry_run=True).will_download:
            with contextlib.suppress(NoParts):  # a mirror; then the whole file is judged
                judge(RemoteFile(name, file))
        return Path(huggingface_hub.hf_hub_download(name, file))


def judge_file(reference: str, judge: Callable[[RemoteFile], dict[str, Any]]) -> dict[str, Any]:
    """What is told from parts of a file, as owner/name/file. Raises as `_explained`."""
    name, file = _parts(reference)
    with _explained(reference):
        return judge(RemoteFile(name, file))


def cached_file(reference: str) -> Path | None:
    """The file owner/name/file, or the tokenizer of the model owner/name, in the hub's cache; None if not there."""
    from huggingface_hub import try_to_load_from_cache

    name, file = _parts(reference)
    found = (try_to_load_from_cache(name, one) for one in ([file] if file else ["tokenizer.json", "tokenizer.model"]))
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _parts(reference: str) -> tuple[str, str]:
    owner, name, *inside = reference.split("/")
    return f"{owner}/{name}", "/".join(inside)


def _fetching(reference: str) -> str:
    """The command that puts a model or a file into the cache."""
    return shlex.join(["hf", "download", *filter(None, _parts(reference))])


@contextlib.contextmanager
def _explained(reference: str) -> Iterator[None]:
    """Online, as far as the user lets it; the hub's errors as ours.

    Raises:
        Missing: access has to be asked for, or the user is offline and the cache has it not. BadInput: no such model
            or file. RemoteError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import errors as hub

    try:
        with online():
            yield
    except PhicliError:
        raise
    except hub.GatedRepoError:
        raise Missing("access has to be asked for", where=reference,
                      hint=f"https://huggingface.co/{reference}") from None
    except hub.RepositoryNotFoundError:
        raise BadInput("no such folder, and no such model on huggingface.co", where=reference,
                       hint="private models: hf auth login") from None
    except hub.LocalEntryNotFoundError as e:
        if isinstance(e.__cause__, hub.OfflineModeIsEnabled) or isinstance(e, hub.OfflineModeIsEnabled):
            raise offline(reference) from None
        raise _unreached(reference, e) from None
    except hub.EntryNotFoundError as e:
        raise BadInput(f"the repository has no such file: {str(e).splitlines()[-1][:200]}", where=reference,
                       hint=ONE_FILE) from None
    except Exception as e:
        raise _unreached(reference, e) from None


def _unreached(reference: str, error: Exception) -> RemoteError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return RemoteError(f"huggingface.co: {reason}", where=reference,
                       hint="--model FOLDER works offline; --model tiny is built in")
