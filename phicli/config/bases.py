"""What the settings of several steps have in common."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from phicli.config import shared
from phicli.config.setting import StepConfig
from phicli.errors import BadInput, UsageError

_FURTHER = re.compile(rf",\s*({'|'.join(shared.COLUMNS)})=")


@dataclass(frozen=True)
class OfModel(StepConfig):
    """What every step has: a model, and the folder of all that is made of it."""

    model: str = shared.model()
    root: str | None = shared.root()
    root_chosen: ClassVar[bool]  # of an object: the root was given, and is not only the model's usual one

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "root_chosen", self.root is not None)
        if self.root is None:
            object.__setattr__(self, "root", shared.default_root(self.model))
        with contextlib.suppress(OSError, ValueError):  # what cannot be looked at is named where it is used
            if self.root_folder.is_file():
                raise UsageError(f"{self.root} is a file", where="--root", hint="--root FOLDER")
        output = getattr(self, "output", None)
        if output and Path(output).resolve() == self.root_folder.resolve():
            raise UsageError("is the root itself, which holds the results of all steps", where="--output")

    def move_usual_root(self, folder: Path) -> None:
        """Let the root, unless it was given, lie in another folder than the working one."""
        if not self.root_chosen and folder != Path():
            object.__setattr__(self, "root", str(folder / str(self.root)))

    @property
    def runs_on(self) -> str:
        """What opens an ONNX model: the provider, where one is given, else the device."""
        provider = getattr(self, "provider", "auto")
        return str(getattr(self, "device", "auto") if provider in (None, "auto") else provider)

    @property
    def as_options(self) -> list[str]:
        """The options that name model and root to another command."""
        return ["--model", self.model, *(["--root", str(self.root)] if self.root_chosen else [])]

    @property
    def model_name(self) -> str:
        """What the model is called in requests: its id, or the last part of its folder."""
        return self.model if not Path(self.model).exists() else Path(self.model).resolve().name

    @property
    def root_folder(self) -> Path:
        """The folder of all results."""
        return Path(str(self.root))


@dataclass(frozen=True)
class OfRows(OfModel):
    """What every step has that reads rows: what they say, and how that becomes text."""

    text_template: str | None = shared.text_template()
    format: str | None = shared.data_format()
    columns: tuple[str, ...] = shared.columns()
    chat_template: str | None = shared.chat_template()
    chat_template_kwargs: tuple[str, ...] = shared.chat_template_kwargs()

    def __post_init__(self) -> None:
        super().__post_init__()
        for column in self.columns:
            name, _, field = column.partition("=")
            if name not in shared.COLUMNS or not field:
                raise UsageError(f"needs NAME=FIELD with one of {', '.join(shared.COLUMNS)}, not {column[:40]!r}",
                                 where="--map", hint="--map prompt=question --map response=answer")
            if _FURTHER.search(field):
                raise UsageError(f"several names in one text: {column[:60]!r}", where="--map",
                                 hint='in a list each is a text of its own: ["prompt=question", "response=answer"]')
        if self.chat_template and not os.path.isfile(self.chat_template):  # noqa: PTH113 (a Path may raise)
            raise BadInput("no such chat template", where=self.chat_template)

    def row_settings(self) -> dict[str, Any]:
        """The settings of rows on which a result depends, as a manifest tells them."""
        return {name: value for name, value in self.recorded().items() if name in OfRows.__annotations__}

    def row_sources(self) -> dict[str, Path]:
        """The file of the chat template, if one is given."""
        return {"chat_template": Path(self.chat_template)} if self.chat_template else {}
