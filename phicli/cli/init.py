"""`phicli init`: a settings file for a folder, so that the commands need no options there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.commands import InitConfig
from phicli.config.layers import SETTINGS
from phicli.config.places import CONFIG_NAME
from phicli.config.setting import settings_of
from phicli.config.writing import typed_value, write_settings
from phicli.errors import Missing, PhicliError, UsageError

QUESTIONS = {
    "data": "Rows to train on: a file, a folder, or owner/name on the Hugging Face hub",
    "model": "Model: tiny (built in), a folder, or an id on the Hugging Face hub",
    "device": "Device: auto, cuda or cpu",
    "azure.workspace_name": "Azure ML workspace, for upload; Enter: none",
    "azure.resource_group": "Its resource group",
    "azure.subscription": "Its subscription id",
}
OFFERED = {"model": "tiny"}  # in place of the setting's default


def init(config: InitConfig, flags: options.Flags) -> Sequence[Next]:
    """Write phicli.toml here: after questions at a terminal, or from options in a script.

    All commands find it, in folders below too; paths in it are seen from its folder. What is in it already stays.

    Examples:
      phicli init
      phicli init --model tiny --data chats.jsonl
    More: docs/housekeeping.md
    """
    values = {settings_of(InitConfig)[name].key: getattr(config, name) for name in flags}
    if console.can_ask():
        values |= _answers(values)
    elif not values:
        raise UsageError("nothing to write, and nobody can be asked here", hint="phicli init --model tiny")
    _check(values)
    console.result(str(write_settings(Path(CONFIG_NAME), values)))
    return [("inspect",), ("run",)]


def _answers(given: dict[str, Any]) -> dict[str, Any]:
    """What a person answers to the questions that no option has answered."""
    found: dict[str, Any] = {}
    for key, question in QUESTIONS.items():
        workspace = {**given, **found}.get("azure.workspace_name")
        if key in given or (key.startswith("azure.") and key != "azure.workspace_name" and not workspace):
            continue
        default = OFFERED.get(key) or SETTINGS[key].shown_default
        value = _answer(key, f"{question}{f' [{default}]' if default else ''}", default)
        if value is not None:
            found[key] = value
    return found


def _answer(key: str, question: str, default: str | None) -> Any:
    """An answer that can be used; the question is asked until there is one. None where there is none."""
    while text := console.ask(question) or default:
        try:
            value = typed_value(SETTINGS[key], text)
            _check({key: value})
            return value
        except PhicliError as e:
            console.failure(e)
    return None


def _check(values: dict[str, Any]) -> None:
    """Raise BadInput for rows or a model that are not there, UsageError for rows of a weight that is none."""
    from phicli.hub.datasets import find_sources
    from phicli.hub.models import local_model

    if not str(values.get("model", "azureml:")).startswith("azureml:"):
        local_model(values["model"])
    try:
        find_sources(values.get("data", ()), local=True)
    except Missing:  # a data set of the hub's, which is fetched when it is used
        return
