"""Settings that the chosen engine does not take: told where they were given, since nothing else shows it."""

from collections.abc import Mapping
from typing import Any

from phicli.cli import console
from phicli.config.commands import ServeConfig
from phicli.config.deploy import DeployConfig
from phicli.config.setting import settings_of, spelt

TOLD = ("model", "root", "path", "name", "adapters", "host", "port", "api_key", "api_key_file", "engine", "max_batch",
        "context", "without_key", "allowed_hosts", "cors_origins")  # what vLLM is told of, or its guard
IDLE = {("serve", "vllm"): tuple(name for name in settings_of(ServeConfig) if name not in TOLD),
        ("deploy", "vllm"): ("processor",), ("deploy", "phicli"): ("vllm_image",)}


def warn_of_idle(config: ServeConfig | DeployConfig, flags: Mapping[str, Any]) -> None:
    """Name in one sentence what was given to no effect. flags: settings that were given as flags."""
    known = settings_of(type(config))
    given = [spelt(name, known[name], getattr(config, name))[0] for name in IDLE.get((config.STEP, config.engine), ())
             if name in flags or getattr(config, name) != known[name].default]
    if given:
        console.warn(f"of no effect with --engine {config.engine}: {', '.join(given)}")
