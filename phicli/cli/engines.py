"""Settings that the chosen engine or target does not take: told where they were given, since nothing else shows it."""

from collections.abc import Mapping
from typing import Any

from phicli.cli import console
from phicli.config.azure import WorkspaceConfig
from phicli.config.commands import ServeConfig
from phicli.config.deploy import IDLE, DeployConfig
from phicli.config.setting import settings_of, spelt

TOLD = ("model", "root", "path", "name", "adapters", "host", "port", "api_key", "api_key_file", "engine", "max_batch",
        "context", "without_key", "allowed_hosts", "cors_origins")  # what vLLM is told of, or its guard
IDLE_SERVING = tuple(name for name in settings_of(ServeConfig) if name not in TOLD)


def warn_of_idle(config: ServeConfig | DeployConfig, flags: Mapping[str, Any]) -> None:
    """Name in one sentence what was given to no effect. flags: settings that were given as flags."""
    known, serving = settings_of(type(config)), isinstance(config, ServeConfig)
    idle = (IDLE_SERVING if config.engine == "vllm" else ()) if serving else IDLE[config.engine]
    _warn(f"--engine {config.engine}", [spelt(name, known[name], getattr(config, name))[0] for name in idle
                                        if name in flags or getattr(config, name) != known[name].default])


def warn_of_target(config: DeployConfig, flags: Mapping[str, Any]) -> None:
    """The same of what is deployed to: only flags, since one settings file serves several targets."""
    known = {**settings_of(DeployConfig), **settings_of(WorkspaceConfig)}
    _warn(f"--to {config.to}", [spelt(name, known[name], flags[name])[0] for name in IDLE[config.to]
                                if name in flags and name not in IDLE[config.engine]])


def _warn(choice: str, given: list[str]) -> None:
    if given:
        console.warn(f"of no effect with {choice}: {', '.join(given)}")
