"""A model's folder as far as it is read without onnxruntime: settings, tokenizer, names of adapters."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts.names import ADAPTER_SUFFIX, ADAPTERS, FINETUNED, ONNX_FOLDER
from phicli.artifacts.reading import read_text
from phicli.artifacts.stages import REMOVABLE, check_whole, read_manifest
from phicli.config.commands import ChatConfig
from phicli.config.root_model import root_around
from phicli.config.setting import checked
from phicli.errors import BadInput
from phicli.export.genai_config import read_config
from phicli.inference.sampling import Sampling
from phicli.libraries import subdued
from phicli.text import TextCodec
from phicli.text.layout import LONGEST


class NoAdapter(BadInput):
    """A model has no adapter of that name."""


class ModelFolder:
    """What `Session` and `Engine` know of a folder once it is `read`.

    settings: as `read_config` gives them. graph_file: of the decoder, with its adapters. codec: tokenizer and chat
    template. context, vocab_size: in tokens. end_ids: tokens that end an answer. sampling: what the model asks for.
    """

    def __init__(self, folder: str | Path, chat_template_kwargs: Mapping[str, Any] | None = None):
        self.folder = Path(checked(ChatConfig, "path", folder) or "")
        self._template_options = chat_template_kwargs

    def read(self) -> None:
        """Read it, from one generation of the folder. Raises Missing: no such folder. BadInput: damaged."""
        self.settings = read_config(self.folder)
        check_whole(self.folder, lambda name: not name.startswith(REMOVABLE))  # an adapter: when it is loaded
        self.codec = TextCodec(self.folder, None, self._template_options)
        self._codecs: dict[str, TextCodec] = {}
        for name in self.adapter_names():
            with contextlib.suppress(BadInput):  # as it is told again to who asks for it
                self._codecs[name] = self._own_codec(name)
        for codec in (self.codec, *self._codecs.values()):
            with contextlib.suppress(BadInput):  # told to who lays out a conversation; others need none
                _ = codec.layout  # read now: the folder may be another model's when it is asked for
        model = self.settings["model"]
        self.graph_file = self.folder / model["decoder"]["filename"]
        self.context: int = model["context_length"]
        self.vocab_size: int = model["vocab_size"]
        ends = model["eos_token_id"]
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends])
        self.sampling = Sampling.asked_by(self.settings["search"])

    def codec_of(self, adapter: str | None) -> TextCodec:
        """Tokenizer and chat template for an adapter: the one that it was trained with, where it has one of its own."""
        if adapter is None or adapter in self._codecs:
            return self.codec if adapter is None else self._codecs[adapter]
        own = self._own_codec(adapter)  # of one that came later
        if own is not self.codec:
            self._codecs[adapter] = own
        return own

    def _own_codec(self, adapter: str) -> TextCodec:
        file = self.folder / ADAPTERS / f"{adapter}.jinja"
        return self.codec.under(read_text(file, LONGEST)) if file.is_file() else self.codec

    def adapter_names(self) -> list[str]:
        """Names of the adapters that lie beside the model."""
        return adapters_beside(self.folder)

    @subdued()
    def check_adapter(self, name: str) -> Path:
        """The file of an adapter, which fits the model in the folder. Raises BadInput: none such, damaged, foreign."""
        from phicli.export.adapters import check_adapter

        if name not in self.adapter_names():
            raise no_adapter(self.folder, name)
        path = self.adapter_path(name)
        check_whole(self.folder, f"{REMOVABLE}{path.name}".__eq__)
        check_adapter(self.folder, path)
        return path

    def adapter_path(self, name: str) -> Path:
        """Where the file of an adapter is, or would be."""
        return self.folder / ADAPTERS / (name + ADAPTER_SUFFIX)


def adapters_beside(folder: Path) -> list[str]:
    """Names of the adapters that lie beside the model in a folder."""
    return sorted(p.name[: -len(ADAPTER_SUFFIX)] for p in folder.glob(f"{ADAPTERS}/*{ADAPTER_SUFFIX}"))


def no_adapter(folder: Path, name: str, known: Sequence[str] | None = None) -> NoAdapter:
    """The error where a model has no adapter of a name, and what makes one that has.

    known: those that it has; None: those that lie beside it.
    """
    known = adapters_beside(folder) if known is None else known
    merged = merged_into(folder)
    if merged is None:
        return NoAdapter(f"no adapter '{name}'; there are: {', '.join(known) or 'none'}", where=folder / ADAPTERS,
                        hint=optimizing(folder, name))
    without = ["leave the adapter out: it is in the model"] if merged == name else []
    first, *more = *without, optimizing(folder, name)
    return NoAdapter(f"no adapter '{name}': '{merged}' is in the weights of this model, which takes none",
                     where=folder, hint=first, also=more)


def optimizing(folder: Path, name: str) -> str:
    """The command that makes a model with an adapter; not in the place of one that has another in its weights."""
    named = f"--adapter {shlex.quote(name)}"
    if merged_into(folder) is None:
        return f"phicli optimize {named}=FOLDER"
    root = root_around(folder)
    if root is None or (root / ONNX_FOLDER).resolve() == folder.resolve():
        return f"phicli optimize --output OTHER_FOLDER {named}=FOLDER"
    adapter = named if (root / FINETUNED / name).is_dir() else f"{named}=FOLDER"
    return f"phicli optimize --root {shlex.quote(str(root))} {adapter}"


def merged_into(folder: Path) -> str | None:
    """The adapter that is in a model's weights, as its manifest tells; None: none is, or it takes others too."""
    with contextlib.suppress(BadInput, KeyError, TypeError, AttributeError):
        manifest = read_manifest(folder)
        if manifest and not manifest.quality.get("adapters"):
            made = manifest.origins["base"]["made"]
            return Path(made["origins"]["adapter"]["path"]).name if made["step"] == "merge" else None
    return None
