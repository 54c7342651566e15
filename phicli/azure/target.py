"""Which workspace is meant, and where downloaded models are kept."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from phicli.artifacts.cache import user_cache
from phicli.artifacts.private import others_can_write, private_folder
from phicli.artifacts.reading import read_json
from phicli.config.azure import TransferConfig, WorkspaceConfig
from phicli.config.layers import Settings
from phicli.config.places import CONFIG_NAME
from phicli.config.writing import write_settings
from phicli.errors import BadInput, Missing

SDK_CONFIG = Path(".azureml") / "config.json"  # what the Azure portal and `az ml` give out
QUESTIONS = {"subscription": "Azure subscription id", "resource_group": "Resource group",
             "workspace_name": "Azure ML workspace"}

Ask = Callable[[str], str | None]  # a question to a person; None where there is none or no answer


@dataclass(frozen=True)
class Target:
    """An Azure ML workspace by its three names; the fields are those of the settings under `azure.`."""

    subscription: str
    resource_group: str
    workspace_name: str

    @property
    def reference(self) -> str:
        return (f"azureml://subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"
                f"/workspaces/{self.workspace_name}")


def cache_folder(settings: Settings) -> Path:
    """Where downloaded models are kept: the setting, else the user's cache folder."""
    chosen = settings.resolve(TransferConfig).cache
    return Path(chosen).expanduser() if chosen else user_cache() / "azure"


def check_cache(cache: Path) -> None:
    """Raise Missing if somebody else could put models into the cache. phicli's own part of the user's is made, 0700."""
    if cache == user_cache() / "azure":
        private_folder(cache)
    elif who := others_can_write(cache):
        raise Missing(f"others can write to {who}, so that its models cannot be trusted", where=cache,
                      hint=f"chmod go-w {shlex.quote(str(who))}", also=["another azure.cache, or --output"])


def nobody(question: str) -> None:
    """The answer where no person can be asked."""
    return None


def find_target(settings: Settings, given: dict[str, str | None], ask: Ask = nobody) -> Target:
    """The workspace that flags, environment, phicli.toml or `.azureml/config.json` name, else what the user answers.

    Raises:
        Missing: a name is nowhere to be found. BadInput: `.azureml/config.json` is damaged.
    """
    flags = {name: given.get(name) for name in QUESTIONS}
    names = {k: v for k, v in asdict(settings.resolve(WorkspaceConfig, flags)).items() if v}
    if len(names) < len(QUESTIONS):
        names = {**_from_sdk_config(), **names}
    names = {name: names.get(name) or ask(question) or "" for name, question in QUESTIONS.items()}
    lacking = [name for name, value in names.items() if not value]
    if lacking:
        known = " ".join(f"--{k.replace('_', '-')} {v or '…'}" for k, v in names.items())
        raise Missing(f"which Azure ML workspace? {' and '.join(lacking)} not set", hint=f"phicli azure use {known}")
    return Target(**names)


def _from_sdk_config() -> dict[str, str]:
    """The names in the nearest `.azureml/config.json`, upwards from the working folder."""
    here = Path.cwd()
    path = next((p / SDK_CONFIG for p in (here, *here.parents) if (p / SDK_CONFIG).is_file()), None)
    if path is None:
        return {}
    document = read_json(path)
    found = {"subscription": "subscription_id", "resource_group": "resource_group", "workspace_name": "workspace_name"}
    if not isinstance(document, dict) or not all(isinstance(document.get(key), str | None) for key in found.values()):
        raise BadInput("no names of a workspace", where=path, hint="download it again from the Azure portal")
    return {name: document[key] for name, key in found.items() if document.get(key)}


def remember(target: Target, path: Path | None = None) -> Path:
    """Write the workspace into the settings file and keep everything else in it, comments too; returns the file.

    Raises as `write_settings`.
    """
    return write_settings(path or Path(CONFIG_NAME), {f"azure.{name}": getattr(target, name) for name in QUESTIONS})
