"""Which adapters go beside a model: names and PEFT folders, checked against the base before anything is built."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phicli.architectures import in_layer
from phicli.artifacts import stages
from phicli.artifacts.names import ADAPTER_CONFIG, ADAPTER_SUFFIX, ADAPTERS
from phicli.checkpoints.adapter_settings import NoSlot
from phicli.checkpoints.copies import check_copies
from phicli.checkpoints.peft_folder import Lora, check_plain, read_peft
from phicli.errors import BadInput, UsageError
from phicli.progress import Progress
from phicli.text.layout import TEMPLATE_FILE

PREFIX = ADAPTERS + "/"  # of adapters among a manifest's inputs and files
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

    @property
    def template(self) -> Path:
        """Where the chat template is that it was trained with, if the model's own is another or none."""
        return self.folder / TEMPLATE_FILE

    @property
    def rank(self) -> int:
        """The largest of its updates'."""
        return max(lora.rank for lora in self.loras.values())

    def check_kind(self, model: Path) -> list[str]:
        """Check by settings and names that slots can hold the adapter, on a checkpoint; returns remarks for people.

        Raises:
            NoSlot: they cannot. BadInput: it is damaged.
        """
        check_plain(self.folder)
        return check_copies(self.folder, model)

    def check(self, shapes: dict[str, tuple[int, int]], base: str, progress: Progress) -> None:
        """Check the adapter against a checkpoint, and say so if it was trained on another one.

        Args:
            shapes: as `linear_shapes` gives them. base: the checkpoint's fingerprint.

        Raises:
            BadInput: not plain LoRA, damaged, or an adapter for another model.
        """
        for name, lora in self.loras.items():
            number, path = in_layer(name) or (0, "")
            have, need = (lora.a.shape[1], lora.b.shape[0]), shapes.get(f"layers.{number}.{path}")
            if have != need:
                what = "no such linear in its layers" if need is None else f"{need[0]} inputs and {need[1]} outputs"
                raise BadInput(f"an adapter for another model: {name} has {have[0]} inputs and {have[1]} outputs in "
                               f"it, the model has {what}", where=self.folder,
                               hint=f"train one on this model: phicli finetune --name {shlex.quote(self.folder.name)}")
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
    found = {p.parent.name: Source(p.parent.name, p.parent) for p in sorted(trained.glob(f"*/{ADAPTER_CONFIG}"))
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
        if not chosen[name].folder.is_dir():
            raise BadInput("no such adapter folder", where=path, hint=f"phicli finetune --name {name}",
                           also=["--adapter NAME=FOLDER"])
    return chosen


def with_slots(sources: Mapping[str, Source], model: Path, progress: Progress
               ) -> tuple[list[Source], dict[str, NoSlot]]:
    """Those of the adapters that slots beside a checkpoint can hold, and why not the others, by name.

    Raises:
        BadInput: an adapter is damaged.
    """
    held: list[Source] = []
    refused: dict[str, NoSlot] = {}
    for source in sources.values():
        try:
            for remark in source.check_kind(model):
                progress.warn(f"adapter {source.name}: {remark}")
            held.append(source)
        except NoSlot as e:
            refused[source.name] = e
    return held, refused


@dataclass(frozen=True)
class Kept(Source):
    """An adapter whose PEFT folder is gone; the model has its matrices.

    model: the ONNX folder. fingerprint, known_rank: of the source, as the model's manifest has them.
    """

    model: Path
    fingerprint: str
    known_rank: int

    @property
    def template(self) -> Path:
        return self.model / ADAPTERS / f"{self.name}.jinja"

    @property
    def rank(self) -> int:
        return self.known_rank

    @cached_property
    def loras(self) -> dict[str, Lora]:
        """As the model has them. Raises BadInput: it is damaged."""
        from phicli.export.kept import read_adapter

        try:
            stages.check_whole(self.model)
            return read_adapter(self.model, self.name)
        except BadInput as e:
            raise BadInput(f"adapter {self.name} would be lost: its source {self.folder} is gone, and the model's own "
                           f"copy cannot be read ({e.message})", where=self.model, hint=_loss(self.name)) from None

    def check(self, shapes: dict[str, tuple[int, int]], base: str, progress: Progress) -> None:
        """Nothing but say so: `match` compares it with the graph."""
        progress.warn(f"adapter {self.name} is taken from the model: its source {self.folder} is no longer there")


def earlier_sources(folder: Path, wanted: Collection[str]) -> dict[str, Source]:
    """The adapters that a model has now and that are not `wanted` anew, to be kept when its graph is written again.

    Raises:
        BadInput: its manifest, which says where they are from, is damaged.
    """
    files = {p.name.removesuffix(ADAPTER_SUFFIX) for p in folder.glob(f"{PREFIX}*{ADAPTER_SUFFIX}")}
    kept: dict[str, Source] = {}
    try:
        manifest = stages.read_manifest(folder) or stages.Manifest("", {}, {})
        for name, entry in manifest.quality.get("adapters", {}).items():
            source = Path(entry["source"])
            if name not in files or name in wanted:
                continue  # removed by the user, or made anew
            if (source / ADAPTER_CONFIG).is_file():
                kept[name] = Source(name, source)
            else:
                kept[name] = Kept(name, source, folder, manifest.inputs[PREFIX + name], int(entry["rank"]))
    except (BadInput, KeyError, TypeError, ValueError, AttributeError):
        if lost := sorted(files - {*wanted}):
            raise BadInput(f"adapter {lost[0]} would be lost: the model's manifest is damaged and does not say where "
                           "it is from", where=folder / stages.MANIFEST, hint=_loss(lost[0])) from None
    return kept


def _loss(name: str) -> str:
    return f"--adapter {name}=FOLDER, or remove {PREFIX}{name}{ADAPTER_SUFFIX}"
