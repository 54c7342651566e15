"""Whether a model is on this machine, and else whether it can be fetched."""

import os
from pathlib import Path

from phicli.errors import Missing, PhicliError, RemoteError
from phicli.hub.fetching import ask_for, cached_file
from phicli.hub.gguf import is_gguf
from phicli.hub.models import local_model
from phicli.libraries import user_is_offline
from phicli.resources.sizes import PUBLISHED


def asks_hub(model: str, online: bool) -> bool:
    """Whether the hub is asked for a model that is not here: online, or where nothing else is known of it; where the
    user keeps everything from the hub, that is the answer."""
    if model.startswith("azureml:") or local_here(model):
        return False
    return online or user_is_offline() or not (model.lower() in PUBLISHED or cached_config(model))


def out_of_reach(model: str) -> PhicliError | None:
    """Why the hub does not give a model; None where it would. Raises BadInput: it has no such model or file."""
    try:
        ask_for(model)
    except (Missing, RemoteError) as e:
        return e
    return None


def local_here(model: str) -> bool:
    """Whether nothing has to be fetched."""
    return not model.startswith("azureml:") and (local_model(model) is not None or cached(model))


def cached(reference: str) -> bool:
    """Whether the hub's cache has the model's config and weights, or its GGUF file."""
    if is_gguf(reference):
        return cached_file(reference) is not None
    folder = hub_cache() / ("models--" + reference.replace("/", "--")) / "snapshots"
    return any(folder.glob("*/config.json")) and any(folder.glob("*/*.safetensors"))


def cached_config(reference: str) -> Path | None:
    """config.json of a model of the hub, in the hub's cache; of a GGUF file none."""
    return None if is_gguf(reference) else cached_file(f"{reference}/config.json")


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it fetches; told without importing it."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(given).expanduser() if given else hub_home() / "hub"


def hub_home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{base}/huggingface").expanduser()
