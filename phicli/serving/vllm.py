"""The same AWQ checkpoint and adapters under vLLM: its command line, and starting it in place of this process."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from phicli.artifacts.names import ADAPTER_CONFIG, FINETUNED
from phicli.checkpoints.vllm_lora import largest_rank
from phicli.config.commands import ServeConfig
from phicli.errors import BadInput, Missing, UsageError
from phicli.hub.models import find_base

QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
KEY = "VLLM_API_KEY"


def vllm_command(config: ServeConfig, base: str) -> list[str]:
    """What starts vLLM with the model of a root and its adapters, each under its own name.

    Args:
        base: name of the model without an adapter.

    Raises:
        BadInput: as `adapters_of` and `largest_rank`.
        Missing: as `find_base`.
    """
    folder = Path(config.path) if config.path else find_base(config.root_folder)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--served-model-name", base,
               "--host", config.host, "--port", str(config.port), "--max-num-seqs", str(config.max_batch)]
    if config.context:
        command += ["--max-model-len", str(config.context)]
    found = adapters_of(config)
    if found:
        command += ["--enable-lora", "--max-lora-rank", str(largest_rank(found.values())), "--max-loras",
                    str(min(len(found), config.max_batch)), "--lora-modules",
                    # not NAME=PATH, which vLLM splits at every "=" and takes for JSON where there is a comma
                    *(json.dumps({"name": name, "path": str(place)}) for name, place in found.items())]
    return command


def adapters_of(config: ServeConfig) -> dict[str, Path]:
    """The PEFT folders of the adapters to serve, by name. Raises BadInput: one that is not there."""
    root = config.root_folder / FINETUNED
    known = {path.parent.name: path.parent for path in sorted(root.glob(f"[!.]*/{ADAPTER_CONFIG}"))}
    if missing := [name for name in config.adapters if name not in known]:
        raise BadInput(f"no adapter '{missing[0]}'; there are: {', '.join(known) or 'none'}", where=root)
    return {name: known[name] for name in config.adapters or known}


def become_vllm(command: Sequence[str], keys: Sequence[str]) -> None:
    """Go on as vLLM: this process becomes it, so that signals reach it. Does not return.

    Raises:
        Missing: it is not installed. UsageError: more keys than its variable holds.
    """
    if find_spec("vllm") is None:
        raise Missing("vLLM is not installed, or not where phicli is", where="--engine vllm",
                      hint="pip install vllm, on Linux with a GPU")
    if len(keys) > 1:
        raise UsageError("vLLM is given one key only", where="--api-key-file")
    environment = {**os.environ, **QUIET, **({KEY: keys[0]} if keys else {})}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(shutil.which(command[0]) or command[0], list(command), environment)
