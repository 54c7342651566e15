"""Where each value comes from: flag, environment, phicli.toml, what was used last, default."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from phicli.artifacts.names import ROOT_MODEL
from phicli.artifacts.reading import read_text
from phicli.config.azure import JobConfig, TransferConfig, UploadConfig, WorkspaceConfig
from phicli.config.bases import OfModel
from phicli.config.commands import ChatConfig, ServeConfig
from phicli.config.deploy import DeployConfig
from phicli.config.exporting import ExportConfig, MergeConfig
from phicli.config.last_used import FILE, read_last
from phicli.config.measuring import SearchConfig
from phicli.config.places import find_settings_file, is_there, placed
from phicli.config.root_model import model_from, original_of, root_around
from phicli.config.setting import Setting, StepConfig, expand, settings_of
from phicli.config.steps import EvaluateConfig, FinetuneConfig, InspectConfig, OptimizeConfig, QuantizeConfig
from phicli.errors import BadInput

LONGEST_FILE, LONGEST_KEY = 1 << 16, 1000  # bytes, characters
CONFIGS: tuple[type[StepConfig], ...] = (
    InspectConfig, QuantizeConfig, FinetuneConfig, MergeConfig, OptimizeConfig, ExportConfig, ChatConfig,
    ServeConfig, EvaluateConfig, SearchConfig, UploadConfig, WorkspaceConfig, TransferConfig, JobConfig, DeployConfig,
)
SETTINGS: dict[str, Setting] = {
    found.key: found
    for config in CONFIGS for found in sorted(settings_of(config).values(), key=lambda s: "." in s.key) if found.key
}
Config = TypeVar("Config", bound=StepConfig)


@dataclass(frozen=True)
class Value:
    """A setting's value and its origin: "flag", "PHICLI_…", a file or "default"."""

    value: Any
    origin: str


class Settings:
    """The layers under the flags: environment, settings file, of the model the one used last, defaults.

    `folder` is where the usual roots lie: the working folder, or that of a settings file found above it.

    Args:
        path: the settings file; None takes $PHICLI_CONFIG, else as `find_settings_file`.

    Raises:
        BadInput: the file cannot be read, is no TOML, or has an unknown key or a value of another type; a variable
            PHICLI_… is no setting's.
    """

    def __init__(self, path: Path | None = None):
        named = path or os.environ.get("PHICLI_CONFIG")
        _check_environment()
        self.path = Path(expand(str(named))) if named else find_settings_file()
        self.file = _read_file(self.path) if self.path else {}
        self.folder = self.path.parent if self.path and not named else Path()
        self.last = read_last(self.folder)

    def get(self, setting: Setting, flag: Any = None, option: str = "") -> Value:
        """The value that holds, and its origin. option: the flag as it was given, for messages.

        Raises:
            UsageError: a flag out of range. BadInput: the same from the environment or the file.
        """
        if flag is not None:
            if setting.kind is tuple and not isinstance(flag, str):  # several times, and with commas too
                named = setting.path or not setting.default  # an empty one is none of those either
                flag = [part for text in map(str, flag)
                        for part in ([text] if named and not text else from_text(setting, text))]
            flag = str(flag) if isinstance(flag, Path) else flag
            return Value(setting.checked(flag, option or "--" + setting.name.replace("_", "-")), "flag")
        if setting.key and setting.env in os.environ:
            value = from_text(setting, os.environ[setting.env])
            return Value(setting.checked(value, setting.env, BadInput), setting.env)
        if setting.key and setting.key in self.file:
            assert self.path is not None
            value = setting.checked(self.file[setting.key], f"{self.path}: {setting.key}", BadInput)
            return Value(placed(setting, value, self.path.parent), str(self.path))
        return Value(setting.default, "default")

    def resolve(self, config: type[Config], flags: Mapping[str, Any] | None = None) -> Config:
        """A step's settings: each flag that was given, the rest from the layers below. Other names in `flags` are left.

        Raises as `get`.
        """
        flags = flags or {}
        found = self.with_last({name: self.get(setting, flags.get(name), f"--{name.replace('_', '-')}")
                                for name, setting in settings_of(config).items()})
        made = config(**{name: value.value for name, value in found.items()})
        if isinstance(made, OfModel):
            made.move_usual_root(self.folder)
        return made

    def with_last(self, values: dict[str, Value]) -> dict[str, Value]:
        """The values by name, with the model used last where neither a model nor a root is given, a root's own where
        that alone is, or a folder in it (`path`), and the one that a quantized `base` was made from."""
        if "root" not in values or "model" not in values or values["model"].origin != "default":
            return values
        path = values.get("path")
        if values["root"].origin == "default" and path and path.value and (around := root_around(Path(path.value))):
            values = values | {"root": Value(str(around), path.origin)}
        if values["root"].origin != "default":
            root = Path(values["root"].value)
            if own := model_from(root):
                return values | {"model": Value(own, str(root / ROOT_MODEL))}
        base = values.get("base")
        if base and base.value and (own := original_of(Path(base.value))):
            return values | {"model": Value(own, base.origin)}
        if values["root"].origin != "default":
            return values
        return values | {name: Value(placed(SETTINGS[name], value, self.folder), str(self.folder / FILE))
                         for name, value in self.last.items()}


def _check_environment() -> None:
    known = {"PHICLI_CONFIG", *(setting.env for setting in SETTINGS.values())}
    for name in sorted(os.environ):
        if name.startswith("PHICLI_") and name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            raise BadInput("unknown setting in the environment", where=name,
                           hint=f"did you mean {near[0]}?" if near else "see: phicli config")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, LONGEST_FILE)
        for number, line in enumerate(text.splitlines(), 1):  # tomllib takes a minute for a key of 30,000 parts
            key = line if line.lstrip().startswith("[") else line.partition("=")[0] if "=" in line else ""
            if len(key) > LONGEST_KEY:
                raise BadInput(f"a key of more than {LONGEST_KEY} characters", where=f"{path}:{number}")
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise BadInput("no such settings file", where=path, hint="phicli init") from None
    except (ValueError, RecursionError) as e:  # ValueError itself: a number of thousands of digits
        raise BadInput(f"not readable as TOML: {str(e)[:200]}", where=path) from None
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    for key in flat:
        if key not in SETTINGS:
            near = difflib.get_close_matches(key[:80], SETTINGS, 1, 0.5)
            raise BadInput(f"unknown setting '{key[:80]}'", where=path,
                           hint=f"did you mean '{near[0]}'?" if near else "see: phicli config")
    return flat


def from_text(setting: Setting, text: str) -> Any:
    """A value as the environment has it. Raises BadInput: of another type."""
    if setting.kind is bool:
        lowered = text.lower()
        if lowered not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            raise BadInput(f"'{text}' is neither true nor false", where=setting.env)
        return lowered in ("1", "true", "yes", "on")
    if setting.kind is tuple:
        whole = setting.verbatim or (setting.path and is_there(text))  # a comma in a file's name parts nothing
        return [text] if whole else [part.strip() for part in text.split(",") if part.strip()]
    try:
        return setting.kind(text)
    except ValueError:
        raise BadInput(f"'{text}' is no {setting.kind.__name__}", where=setting.env) from None
