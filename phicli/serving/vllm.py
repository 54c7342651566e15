"""The same AWQ checkpoint and adapters under vLLM: its command line, and starting it in place of this process."""

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from phicli.artifacts.names import FINETUNED
from phicli.config.commands import ServeConfig
from phicli.errors import Missing, UsageError
from phicli.export.for_vllm import choose_adapters, choose_checkpoint, largest_rank, write_adapters
from phicli.serving.settings import LOOPBACK, is_loopback, not_had
from phicli.serving.vllm_guard import HOSTS, KEY, ORIGINS

QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
COPIES = ".vllm"  # in the folder of adapters: as vLLM takes them


def vllm_command(config: ServeConfig, base: str, warn: Callable[[str], None]) -> list[str]:
    """What starts vLLM with the model of a root and its adapters, each under its own name; these are written for it.

    Args:
        base: name of the model without an adapter.

    Raises:
        BadInput: as `choose_checkpoint` and `choose_adapters`. Missing: as `find_base`, or a port that is taken.
    """
    folder = choose_checkpoint(config.path, config.root_folder)
    found = choose_adapters(config.adapters, config.root_folder, folder, base, warn)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--served-model-name", base,
               "--host", config.host, "--port", str(_free_port(config.host, config.port)),
               "--max-num-seqs", str(config.max_batch), "--middleware", "phicli.serving.vllm_guard.Guard",
               "--allowed-origins", json.dumps(config.cors_origins)]
    if config.context:
        command += ["--max-model-len", str(config.context)]
    if found:
        copies = _copies(config.root_folder / FINETUNED)
        write_adapters(found, copies, str(folder))
        command += ["--enable-lora", "--max-lora-rank", str(largest_rank(found)), "--max-loras",
                    str(min(len(found), config.max_batch)), "--lora-modules",
                    # not NAME=PATH, which vLLM splits at every "=" and takes for JSON where there is a comma
                    *(json.dumps({"name": name, "path": str(copies / name)}) for name in found)]
    return command


def _copies(trained: Path) -> Path:
    """Where adapters lie as vLLM takes them: beside those that were trained, else in a folder that outlasts vLLM."""
    if os.access(trained, os.W_OK):
        return trained / COPIES
    return Path(tempfile.mkdtemp(prefix="phicli-vllm-"))


def _free_port(host: str, port: int) -> int:
    """The port, or for 0 one that is free now: vLLM takes 0, but does not tell which one it got.

    Raises:
        Missing: it cannot be listened to.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            return int(listener.getsockname()[1])
    except OSError as e:
        raise not_had(e, f"{host}:{port}") from None


def vllm_environment(config: ServeConfig, keys: Sequence[str]) -> dict[str, str]:
    """What the guard and vLLM read from the environment. Raises UsageError: more keys than its variable holds."""
    if len(keys) > 1:
        raise UsageError("vLLM is given one key only", where="--api-key-file")
    own = config.allowed_hosts or (() if keys or not is_loopback(config.host) else LOOPBACK)
    hosts = ",".join((*own, config.host, *LOOPBACK)) if own else ""
    return {**QUIET, HOSTS: hosts, ORIGINS: ",".join(config.cors_origins), **({KEY: keys[0]} if keys else {})}


def check_vllm() -> None:
    """Raise Missing where it is not installed."""
    if find_spec("vllm") is None:
        raise Missing("vLLM is not installed where phicli is; it needs Linux, a GPU and an environment without "
                      "phicli[serve]", where="--engine vllm", hint="pip install phicli vllm")


def become_vllm(command: Sequence[str], environment: dict[str, str]) -> None:
    """Go on as vLLM: this process becomes it, so that signals reach it. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(shutil.which(command[0]) or command[0], list(command), {**os.environ, **environment})
