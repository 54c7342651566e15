"""The conversations of a chat. They share one session, so that the model is in memory once."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts.names import GENAI_CONFIG, ONNX_FOLDER
from phicli.config.commands import ChatConfig
from phicli.config.setting import expand
from phicli.errors import BadInput, PhicliError, UsageError
from phicli.inference.answer import Answer
from phicli.inference.conversation import Conversation
from phicli.inference.engine import Unfit
from phicli.inference.engine.together import TogetherSession
from phicli.inference.model_folder import adapters_beside, optimizing
from phicli.inference.session import Session
from phicli.text.layout import template_options


class Talks(contextlib.AbstractContextManager["Talks"]):
    """One conversation; for a comparison one with no adapter, and one with the adapter named or with each there is.
    Compared answers are rows of one batch, where the model's rows share their runs.

    Where no adapter is asked for, the graph without adapters is loaded, which is the faster one. Where one is chosen
    later, another session takes the place of that, and stays; the conversations keep their turns.

    Args:
        folder: of the model. compare: whether answers with and without adapters are compared.
        sample: whether answers are sampled as the model asks; else they are greedy, unless the settings say otherwise.
        only: whether an adapter that is the only one answers, where none is asked for.

    Attributes:
        by_itself: the adapter that answers as it is the only one. unfit: why it cannot.

    Raises:
        Missing, BadInput: as `Session` and `Conversation` do; nothing to compare.
    """

    def __init__(self, folder: Path, config: ChatConfig, compare: bool = False, sample: bool = False,
                 only: bool = False):
        self.folder, self.config, self._sample = folder, config, sample
        known = adapters_beside(folder) if only and not compare and config.adapter is None else []
        wanted = known[0] if len(known) == 1 else None
        self.by_itself: str | None = None
        self.unfit: BadInput | None = None
        names = self._compared() if compare else [config.adapter]
        self._rows = len(names)
        self.session = self._open(folder, adapters=bool(compare or config.adapter or wanted))
        try:
            self.all = self._begun(names)
            self.last = self.all[-1]
            if wanted:
                self._try_adapter(wanted)
        except BaseException:
            self.session.close()
            raise

    def _try_adapter(self, name: str) -> None:
        try:
            self.last.use_adapter(name)
            self.by_itself = name
        except BadInput as e:
            self.unfit = e

    def _compared(self) -> list[str | None]:
        named = self.config.adapter
        names = [None, *([named] if named else adapters_beside(self.folder))]
        if len(names) == 1:
            raise BadInput("no adapter to compare with", where=self.folder,
                           hint=optimizing(self.folder, "NAME"))
        return names

    def _open(self, folder: Path, adapters: bool) -> Session | TogetherSession:
        settings = self.config.runs_on, self.config.kernels
        of_template = template_options(self.config.chat_template_kwargs)
        if self._rows > 1:
            with contextlib.suppress(Unfit):
                return TogetherSession(folder, self._rows, *settings, of_template)
        return Session(folder, *settings, adapters, of_template)

    def _begun(self, adapters: Sequence[str | None]) -> list[Conversation]:
        s = self.config
        sampling = self.session.sampling.settled(s, self._sample)
        return [Conversation(self.session, adapter=name, system=s.system, sampling=sampling,
                             max_new_tokens=s.max_new_tokens, stop=s.stop) for name in adapters]

    def ask_all(self, text: str, on_text: Callable[[int, str], None], stopped: Callable[[], bool]) -> list[Answer]:
        """The answers of all conversations, a token of each in turns; `on_text` gets the conversation's number too.

        Raises as `Conversation.ask`.
        """
        if isinstance(self.session, TogetherSession) and self.session.context < self.session.whole_context and any(
                talk.needed(text) > self.session.context for talk in self.all):
            self._rows = 1  # from now on each runs its own
            self._open_again(self.folder, adapters=True)
        with contextlib.ExitStack() as stack:
            streams = {n: stack.enter_context(contextlib.closing(talk.stream(text, stopped)))
                       for n, talk in enumerate(self.all)}
            while streams:
                for n, stream in [*streams.items()]:
                    if (piece := next(stream, None)) is None:
                        del streams[n]
                    elif piece:
                        on_text(n, piece)
        return [talk.last for talk in self.all if talk.last]

    def change(self, name: str, value: Any) -> None:
        """Another value for one setting, in all conversations. Raises UsageError: out of range."""
        self.config = self.config.but(**{name: value})
        for talk in self.all:
            talk.use_sampling(self.session.sampling.settled(self.config, self._sample))
            talk.max_new_tokens, talk.stop = self.config.max_new_tokens, self.config.stop

    def resume(self, turns: Sequence[tuple[str, str]], system: str | None) -> None:
        """Let all conversations go on after these turns."""
        for talk in self.all:
            talk.reset()
            talk.turns, talk.system = [*turns], system

    def adapters_shown(self) -> str:
        """Which adapter answers, and which there are besides."""
        on, names = self.last.adapter, self.session.adapter_names()
        if len(self.all) > 1:
            return "compared: " + ", ".join(talk.adapter or "none" for talk in self.all)
        others = ", ".join(name for name in names if name != on)
        shown = f"{on} (on)" if on else "none"
        return f"{shown}; there is {others}" if others else shown

    def described(self) -> list[str]:
        """What a person should know who begins to chat, in lines."""
        device = {"cpu": "CPU", "cuda": "NVIDIA GPU (CUDA)"}.get(self.session.provider, self.session.provider)
        return [f"model:    {name_of(self.folder)} ({self.folder})", f"device:   {device}",
                f"context:  {self.session.context} tokens", f"adapter:  {self.adapters_shown()}",
                f"sampling: {self.last.sampling}"]

    def use_model(self, folder: Path) -> None:
        """Go on with another model: turns, system message and settings stay; so does an adapter that it has too.

        Raises:
            Missing, BadInput: as `Session`; the model that works stays. UsageError: adapters are being compared.
        """
        if len(self.all) > 1:
            raise UsageError("--compare stays with its model")
        known = adapters_beside(folder)
        name = self.last.adapter if self.last.adapter in known else known[0] if len(known) == 1 else None
        self._open_again(folder, adapters=name is not None)
        self.last.use_adapter(None)
        self.unfit = None
        self.change("seed", self.config.seed)  # how this model wants to be sampled
        if name:
            self._try_adapter(name)

    def use_adapter(self, name: str | None) -> None:
        """Let the last conversation answer with another adapter from now on; None for none.

        Raises:
            BadInput: no such adapter, or one that does not fit. Missing: it needs what the machine lacks.
        """
        if name is not None and (not self.session.takes_adapters or self.session.outdated):
            self.session.check_adapter(name)  # while the model that works is still there
            self._open_again(self.folder, adapters=True)
        self.last.use_adapter(name)

    def _open_again(self, folder: Path, adapters: bool) -> None:
        """Let another session take the place of the one there is; with adapters: with all that the folder has."""
        before = self.folder, self.session.takes_adapters
        self.session.close()  # first: the memory may not hold two
        try:
            self._move_to(folder, adapters)
        except PhicliError:
            self._move_to(*before)
            raise

    def _move_to(self, folder: Path, adapters: bool) -> None:
        self.session, self.folder = self._open(folder, adapters), folder
        for talk in self.all:
            talk.use_session(self.session)

    def __exit__(self, *error: object) -> None:
        self.session.close()


def model_called(name: str, beside: Path) -> Path:
    """The folder of an ONNX model: by its path, or its root's, or by a name that `models_beside` gives.

    Raises:
        BadInput: there is none.
    """
    known = models_beside(beside)
    places = [Path(expand(name)), Path(expand(name)) / ONNX_FOLDER]
    for folder in [known[name]] if name in known else places:
        if (folder / GENAI_CONFIG).is_file():
            return folder
    raise BadInput(f"no model for chat; there are: {', '.join(known) or 'none'}", where=name,
                   hint="phicli optimize")


def models_beside(folder: Path) -> dict[str, Path]:
    """Models in the folder that a model's root lies in, by the names of their roots: models/tiny/onnx-ao is tiny."""
    found = sorted(folder.absolute().parent.parent.glob(f"*/{ONNX_FOLDER}/{GENAI_CONFIG}"))
    return {path.parent.parent.name: path.parent for path in found}


def name_of(folder: Path) -> str:
    """What a model is called: as its root, else as its folder."""
    return (folder.absolute().parent if folder.name == ONNX_FOLDER else folder.absolute()).name
