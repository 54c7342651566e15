"""What a job is to do, and what it takes along: phicli itself, files, the settings below the flags, the root."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from phicli.artifacts.package import zip_package
from phicli.artifacts.stages import MANIFEST, read_manifest
from phicli.azure.content import Content, LocalFile, hash_content, list_content, list_file
from phicli.config.azure import JobConfig, WorkspaceConfig
from phicli.config.layers import SETTINGS, Settings
from phicli.config.places import apart, is_there, matching
from phicli.config.setting import Setting, settings_of
from phicli.config.writing import write_settings
from phicli.errors import BadInput, Missing, UsageError
from phicli.progress import Progress
from phicli.version import tested_versions

PACKAGE, FILES, ROOT, SETTINGS_FILE, ORDER = "phicli.zip", "files", "root", "phicli.toml", "order.json"
INPUT = "{job}"  # in an argument: the folder of what was taken along
OF_THIS_MACHINE = ("root", "model")  # settings that mean nothing there, or are given as flags
OF_THE_STEPS = ("", "inspect", "quantize", "finetune", "optimize", "evaluate")  # before the point in a setting's key
OF_THE_WORKSPACE = tuple(f"azure.{name}" for name in settings_of(WorkspaceConfig))  # for models that Azure has
FORCE = "--force"
FOR_METRICS = ("azureml-mlflow>=1.60", "mlflow-skinny>=3")
BEFORE = {"finetune": ("quantize",), "optimize": ("quantize", "finetune"),
          "evaluate": ("quantize", "finetune", "optimize")}  # a command -> whose results in the root it works on
WRITES = ("output", "save_plan", "logging_dir", "fix", "path")  # places that a job cannot write to here

READ = ("calibration", "plan", "workflow")  # files that cannot be names of something else


@dataclass
class Order:
    """A command for elsewhere. arguments: as a shell takes them, with INPUT in paths. taken: name in the job -> here.

    digest: of all that decides what comes out, once `pack` has read the files.
    """

    command: str
    arguments: list[str]
    root: Path
    job: JobConfig
    settings: dict[str, Any] = field(default_factory=dict)
    taken: dict[str, Path] = field(default_factory=dict)
    digest: str = ""

    def take(self, name: str, setting: Setting, value: Any) -> Any:
        """A setting's value as the job has it: files and folders of this machine are taken along.

        Raises:
            UsageError: a place to write to on this machine. BadInput: a file that is not there.
        """
        if not setting.path:
            return value
        if name in WRITES:
            raise UsageError("a job writes into the root only", where=f"--{name.replace('_', '-')}")
        if name in READ and not is_there(value):
            raise BadInput(f"no such file for --{name}", where=value, hint=f"--{name} FILE")
        if isinstance(value, tuple):
            return tuple(path for text in value for path in self._paths(text))
        return self._path(str(value))

    def _paths(self, text: str) -> list[str]:
        """What is named as data, in the job: each file of a pattern, with the weight behind it."""
        name, weight = apart(text)
        return [self._path(f"{file}{weight}") for file in list(map(str, matching(name))) or [name]]

    def _path(self, text: str) -> str:
        if not is_there(text):  # a name: of the hub's, of an adapter, of a model in Azure
            return text
        place, weight = apart(text)
        name = f"{FILES}/{len(self.taken)}/{Path(place).resolve().name}"
        self.taken[name] = Path(place)
        return f"{INPUT}/{name}{weight}"

    @property
    def on_several_gpus(self) -> bool:
        """Whether the command quantizes or trains in a process for each GPU."""
        given = dict(zip(self.arguments, self.arguments[1:], strict=False)).get("--gpus")
        steps = ("quantize", "finetune") if self.command == "run" else (self.command,)
        return any((given or self.settings.get(f"{step}.gpus", "1")) != "1" for step in steps)

    def take_settings(self, settings: Settings) -> None:
        """Those of the environment and the settings file, as they would hold here; not those of other commands, which
        may name files that are nobody else's, such as a server's keys."""
        for key, setting in SETTINGS.items():
            found = settings.get(setting)
            of_a_job = key in OF_THE_WORKSPACE or key.rpartition(".")[0] in OF_THE_STEPS
            if found.origin != "default" and of_a_job and key not in OF_THIS_MACHINE:
                self.settings[key] = self.take(setting.name, setting, found.value)


def pack(order: Order, scratch: Path, progress: Progress) -> Content:
    """All that the job takes along, with hashes; writes settings and order into `scratch`, and gives order.digest."""
    write_settings(scratch / SETTINGS_FILE, {key: _relative(value) for key, value in order.settings.items()})
    (scratch / ORDER).write_text(json.dumps({"command": order.command, "arguments": order.arguments}))
    root = _under(ROOT, order.root) if order.root.is_dir() and any(order.root.iterdir()) else ()
    zip_package(scratch / PACKAGE)
    files = [*(list_file(scratch / name, name) for name in (SETTINGS_FILE, ORDER, PACKAGE)),
             *(file for name, path in order.taken.items() for file in _under(name, path)), *root]
    content = hash_content(Content(tuple(files), ()), progress)
    decides = [order.command, *(part for part in order.arguments if part != FORCE)]  # its job is found without it, too
    decides += [f"{f.sha256} {f.name}" for f in content.files if f.name != ORDER and not f.name.startswith(f"{ROOT}/")]
    decides += [f"{f.sha256} {f.name}" for f in content.files if _is_worked_on(order.command, f)]
    where = [order.job.compute, order.job.instance_type, order.job.spot]
    order.digest = hashlib.sha256(json.dumps([decides, where]).encode()).hexdigest()
    return content


def _is_worked_on(command: str, file: LocalFile) -> bool:
    """Whether a file is the manifest of a result in the root that the command begins with."""
    if not file.name.startswith(f"{ROOT}/") or file.path.name != MANIFEST:
        return False
    with contextlib.suppress(BadInput):  # the command itself says so, and better
        manifest = read_manifest(file.path.parent)
        return manifest is not None and manifest.step in BEFORE.get(command, ())
    return False


def _relative(value: Any) -> Any:
    """Paths in a settings file are seen from its folder."""
    if isinstance(value, tuple):
        return tuple(map(_relative, value))
    return value.removeprefix(f"{INPUT}/") if isinstance(value, str) and _is_taken(value) else value


def unpacked(argument: str, job: Path) -> str:
    """An argument as the job's machine has it, where the job's folder is `job`."""
    return f"{job}{argument.removeprefix(INPUT)}" if _is_taken(argument) else argument


def _is_taken(text: str) -> bool:
    """Whether it is a path of what was taken along; {job} elsewhere is what a template says."""
    return text.startswith(f"{INPUT}/{FILES}/")


def _under(name: str, path: Path) -> Iterator[Any]:
    if path.is_dir():
        for file in list_content(path).files:
            yield replace(file, name=f"{name}/{file.name}")
    else:
        yield list_file(path, name)


def requirements() -> list[str]:
    """What pip is to install for phicli: each requirement with the version that the tests ran with, its marker kept.

    Raises:
        Missing: phicli is not installed, so that nothing tells what it needs.
    """
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("phicli") or []]
    except metadata.PackageNotFoundError:
        raise Missing("phicli is not installed; what it needs is not known", hint="pip install --editable .") from None
    tested = tested_versions()
    lines = [*FOR_METRICS]
    for found in wanted:
        if not (found.marker and "extra" in str(found.marker)):
            version = tested.get(found.name)
            lines.append((f"{found.name}=={version}" if version else f"{found.name}{found.specifier}")
                         + (f"; {found.marker}" if found.marker else ""))
    return sorted(lines)
