"""What to type next, ready to paste: a command with the settings that the present one was given."""

import contextlib
import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phicli.artifacts.names import ADAPTER_CONFIG, FINETUNED
from phicli.cli.rebuilding import in_place_of, named_folder, sources_of
from phicli.config.azure import UploadConfig, WorkspaceConfig
from phicli.config.bases import OfRows
from phicli.config.commands import ChatConfig, DoctorConfig, LogsConfig, ServeConfig
from phicli.config.deploy import IDLE, DeployConfig
from phicli.config.exporting import ExportConfig, MergeConfig
from phicli.config.layers import Settings, Value
from phicli.config.measuring import BenchmarkConfig, GateConfig, ReportConfig, SearchConfig, VerifyConfig
from phicli.config.setting import Setting, StepConfig, flags_of, settings_of, spelt
from phicli.config.steps import EvaluateConfig, FinetuneConfig, InspectConfig, LabConfig, OptimizeConfig, QuantizeConfig
from phicli.errors import BadInput, PhicliError, RemoteError, UsageError

CONFIGS: Mapping[str, tuple[type[StepConfig], ...]] = {
    **{config.STEP: (config,) for config in (InspectConfig, QuantizeConfig, FinetuneConfig, OptimizeConfig, ChatConfig,
                                             ServeConfig, EvaluateConfig, GateConfig, LabConfig, DoctorConfig,
                                             LogsConfig, BenchmarkConfig, ReportConfig, SearchConfig, VerifyConfig,
                                             MergeConfig, ExportConfig)},
    "status": (LabConfig,), "upload": (UploadConfig, WorkspaceConfig), "deploy": (DeployConfig, WorkspaceConfig),
    **dict.fromkeys(("download", "jobs list", "jobs show", "jobs logs", "jobs cancel"), (WorkspaceConfig,))}
WHERE = ("model", "root", "device")  # what a command of a hint takes along
BUILDERS = ("optimize",)  # which need none of the hardware that they are told
REPEATED = (GateConfig.STEP, ServeConfig.STEP, DeployConfig.STEP)  # hints to do them again have all that was given
RUNNERS = ("serve", "evaluate")  # which a hint to chat on another device means, where they were asked
SECRET = ("api_key",)
OPTIMIZE = "phicli optimize"  # the hint where there is no optimized model
OTHERS = {"--merge", "--device", "--output", "--model", "--root"}  # with these a hint's command means another result
CALL = re.compile(rf"phicli ({'|'.join(CONFIGS)})\b(?!-)((?: --?[a-z][\w-]*)*)")
AN_ADAPTER = f"a folder as PEFT writes it, with {ADAPTER_CONFIG} and adapter_model.safetensors"


class Elsewhere(NamedTuple):
    """A command that this machine cannot run. where: on which machine it can, in words."""

    where: str
    command: tuple[str, ...]


Next = tuple[str, ...] | str | Elsewhere  # a command and its further arguments, or a line that has all but the settings


class Following:
    """The settings of the present command, for those that come after it.

    Args:
        settings: the layers under the flags. given: the flags by name. own: the settings that they are of.
    """

    def __init__(self, settings: Settings, given: Mapping[str, Any], own: Mapping[str, Setting]):
        self.settings, self.given, self.own = settings, given, own

    def line(self, command: str, *more: str, only: Collection[str] | None = None, again: bool = False) -> str:
        """A command line; `more` are arguments beside those taken along, `only` names the settings to take. again: it
        is the present command, which takes what is given for one run too."""
        config = os.environ.get("PHICLI_CONFIG")
        parts = ["phicli", *(["--config", config] if config else []), *command.split()]
        known = [pair for config in CONFIGS.get(command, ()) for pair in settings_of(config).items()]
        idle = self._idle(more) if command == DeployConfig.STEP else ()
        for name, setting in known:
            if (name not in idle and (setting.key or (again and name not in SECRET)) and (only is None or name in only)
                    and not _has(more, name, setting)):
                parts += self._spelt(name, setting)
        return shlex.join([*parts, *more])

    def told(self, one: Next) -> tuple[str, str | None]:
        """A command line for people, and on which machine it runs, if not on this one."""
        if isinstance(one, Elsewhere):
            return self.line(*one.command), one.where
        line = self.whole(one) if isinstance(one, str) else self.line(*one)
        builds = not isinstance(one, str) and one[0] in BUILDERS
        if builds or " --device cuda" not in line:
            return line, None
        from phicli.inference.devices import lacking

        return line, lacking("cuda")

    def whole(self, line: str) -> str:
        """A command line that has all its settings already, with the present settings file."""
        return self.line(*shlex.split(line)[1:], only=())

    def _idle(self, more: Sequence[str]) -> Collection[str]:
        """The settings that change nothing for what is deployed to by a command with such arguments."""
        found = set(IDLE["--delete"]) if "--delete" in more else set[str]()
        for name in ("to", "engine"):
            setting = settings_of(DeployConfig)[name]
            told = more[more.index(f"--{name}") + 1] if f"--{name}" in more else self._value(name, setting).value
            found.update(IDLE[told])
        return found

    def _spelt(self, name: str, setting: Setting) -> list[str]:
        found = self._value(name, setting)
        if found.origin not in ("flag", setting.env) or found.value is None:
            return []
        return spelt(name, setting, found.value)

    def _value(self, name: str, setting: Setting) -> Value:
        own = self.own.get(name)
        flag = self.given.get(name) if own and (own.key == setting.key or name == "device") else None
        built = settings_of(OptimizeConfig)["provider"]
        other = self.given.get("provider") and self.own.get("provider") == built  # the result runs on it by itself
        if (name == "device" and other) or (setting.choices and flag not in setting.choices):
            flag = None  # of optimize: a device that only the result runs on
        return self.settings.get(setting, flag)

    def complete(self, error: PhicliError, command: str) -> None:
        """Give an error's hint the settings of the command that it came up in, and a hint where it has none."""
        def completed(match: re.Match[str]) -> str:
            flags = set(match.string[match.end(1):].split())  # also those behind an argument
            own = {"--model", "-m", "--root"} & flags
            named = command if match[1] == "chat" and "--device" in flags and command in RUNNERS else match[1]
            if named == command and command in REPEATED and not own:
                kept = {name for config in CONFIGS[command] for name in settings_of(config)}
                return self.line(command, *match[2].split(), again=True,
                                 only=kept - {"provider"} if "--device" in flags else None)
            taken = {"device"} if own else set(WHERE)
            taken |= set(WorkspaceConfig.__annotations__)
            if named == "inspect" and not own:  # it is to judge rows in the same way
                taken |= set(OfRows.__annotations__)
            folder = None if flags & OTHERS else named_folder(error, self.given, named)
            again = self._again(folder) if folder else []
            if named == command and self.given.get("path") and not own | {"--path"} & flags:
                again = ["--path", str(self.given["path"])]
            return self.line(named, *again, only=taken - {"device"} if "--device" in flags else taken) + match[2]

        path = Path(self.given.get("path") or "")
        if error.hint == OPTIMIZE and (meant := self.given.get("path") and in_place_of(path, command)):
            kept = {name for config in CONFIGS[meant[0]] for name in settings_of(config)} if meant[0] == command else ()
            error.hint = self.line(*meant, again=True, only={*kept} - {"path", "model"} | {"device"})
        elif error.hint:
            error.hint = CALL.sub(completed, error.hint)
            error.also = tuple(CALL.sub(completed, one) for one in error.also)
        elif isinstance(error, RemoteError):
            error.hint = self.line("doctor", "--online", only=WHERE)
        elif isinstance(error, UsageError | BadInput):
            data = self._data_of(error)
            named = isinstance(error, BadInput) and error.where and not str(error.where).startswith("-")
            error.hint = (self.line("inspect", data) if data and command != "inspect" else
                          self._cure(error) if named else f"phicli {command} --help")
        error.see = self.line("doctor", only=WHERE)  # type: ignore[attr-defined]

    def _cure(self, error: PhicliError) -> str | None:
        """What helps against a file that is not as it should be, told from where it lies; None: that is not known."""
        if folder := named_folder(error, self.given, "optimize"):
            return self.line("optimize", *self._again(folder), only=WHERE)
        where = Path(str(error.where))
        with contextlib.suppress(OSError, ValueError, StopIteration):
            folder = next(place for place in (where, *where.parents[:2]) if (place / ADAPTER_CONFIG).exists())
            own = folder.parent.name == FINETUNED
            return self.line("finetune", "--name", folder.name, only=WHERE) if own else AN_ADAPTER
        return self._another(where)

    def _another(self, file: Path) -> str | None:
        """The option that named a file, and what it wants; None where none did."""
        for name, setting in self.own.items():
            value = self.settings.get(setting, self.given.get(name)).value if setting.path else None
            if value and str(file) in (value if isinstance(value, tuple) else (value,)):
                wants = setting.help.partition(" [default:")[0].partition("; ")[0]
                return " ".join(["another", *([] if setting.argument else flags_of(name, setting)[:1]), f"({wants})"])
        return None

    def _again(self, folder: Path) -> list[str]:
        """The options with which a step makes a folder again that was named to this command."""
        from phicli.inference.model_folder import merged_into

        named = any(self._spelt(name, setting) for name, setting in settings_of(LabConfig).items() if name in WHERE[:2])
        merged = ["--merge", adapter] if (adapter := merged_into(folder)) else []
        return [*([] if named else sources_of(folder)), *merged, "--output", str(folder)]

    def _data_of(self, error: PhicliError) -> str | None:
        """The file of rows in which an error was found."""
        return next((name for name in self.given.get("data") or () if str(error.where).startswith(f"{name}:")), None)


def _has(more: Sequence[str], name: str, setting: Setting) -> bool:
    if setting.argument:
        return any(not part.startswith("-") for part in more)
    return any(flag in more for flag in flags_of(name, setting))
