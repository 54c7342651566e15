"""Which adapters go beside a model: names and PEFT folders, checked against the base before anything is built."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phicli.artifacts import stages
from phicli.checkpoints.peft_folder import Lora, read_peft
from phicli.errors import BadInput, UsageError
from phicli.export.adapters import FOLDER, SUFFIX
from phicli.progress import Progress

PREFIX = FOLDER + "/"  # of adapters among a manifest's inputs and files
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Source:
    """A PEFT folder and the name that its adapter gets."""

    name: str
    folder: Path

    @cached_property
    def loras(self) -> dict[str, Lora]:
        """As `read_peft` gives them; raises BadInput."""
        return read_peft(self.folder)

    def check(self, shapes: dict[str, tuple[int, int]], base: str, progress: Progress) -> None:
        """Check the adapter against a checkpoint, and say so if it was trained on another one.

        Args:
            shapes: as `linear_shapes` gives them. base: the checkpoint's fingerprint.

        Raises:
            BadInput: not plain LoRA, damaged, or an adapter for another model.
        """
        for name, lora in self.loras.items():
            have, need = (lora.a.shape[1], lora.b.shape[0]), shapes.get(name[name.find("layers.") :])
            if have != need:
                what = "no such linear in its layers" if need is None else f"{need[0]} inputs and {need[1]} outputs"
                raise BadInput(f"an adapter for another model: {name} has {have[0]} inputs and {have[1]} outputs in "
                               f"it, the model has {what}", where=self.folder,
                               hint="train one on this model: phicli finetune")
        manifest = stages.read_manifest(self.folder)
        if manifest is not None and manifest.inputs.get("base", base) != base:
            progress.warn(f"adapter {self.name} was trained on another base than this model is built from")


def choose_sources(adapters: Sequence[str] | None, trained: Path) -> dict[str, Source]:
    """What the user asked for, by name.

    Args:
        adapters: "NAME=FOLDER", or the name of a folder under `trained`; None or empty takes all folders there.

    Raises:
        BadInput: a name that cannot be one, or no such folder. UsageError: a name twice.
    """
    found = {p.parent.name: Source(p.parent.name, p.parent) for p in sorted(trained.glob("*/adapter_config.json"))
             if not p.parent.name.startswith(".")}
    if not adapters:
        return found
    chosen: dict[str, Source] = {}
    for text in adapters:
        name, equals, path = text.partition("=")
        if not NAME.fullmatch(name):
            raise BadInput("an adapter's name has letters, digits, '.', '_' and '-' only", where=f"--adapter {text}",
                           hint="--adapter NAME=FOLDER")
        if name in chosen:
            raise UsageError(f"'{name}' is there twice", where="--adapter")
        if not equals and name not in found:
            raise BadInput(f"no adapter '{name}' in {trained}; there are: {', '.join(found) or 'none'}",
                           where=f"--adapter {text}", hint="--adapter NAME=FOLDER")
        chosen[name] = Source(name, Path(path).expanduser()) if equals else found[name]
    return chosen


def earlier_sources(folder: Path, progress: Progress) -> dict[str, Source]:
    """The adapters that a model has now, to be kept when it is built anew; those whose source is gone are named."""
    try:
        manifest = stages.read_manifest(folder)
    except BadInput:
        return {}
    kept = {}
    for name, entry in (manifest.quality.get("adapters", {}) if manifest else {}).items():
        if not (folder / PREFIX / (name + SUFFIX)).is_file():
            continue  # removed by the user
        if Path(entry["source"], "adapter_config.json").is_file():
            kept[name] = Source(name, Path(entry["source"]))
        else:
            progress.warn(f"adapter {name} goes: its source {entry['source']} is no longer there")
    return kept
