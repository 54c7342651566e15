"""The conversations of a chat. They share one session, so that the model is in memory once."""

import contextlib
from pathlib import Path

from phicli.config.steps import ChatConfig
from phicli.errors import BadInput, PhicliError
from phicli.inference.conversation import Conversation
from phicli.inference.session import Session
from phicli.text.layout import template_options


class Talks(contextlib.AbstractContextManager["Talks"]):
    """One conversation; for a comparison one with no adapter, and one with the adapter named or with each there is.

    Where no adapter is asked for, the graph without adapters is loaded, which is the faster one. Where one is chosen
    later, another session takes the place of that, and stays; the conversations keep their turns.

    Args:
        folder: of the model. compare: whether answers with and without adapters are compared.
        sample: whether answers are sampled as the model asks; else they are greedy, unless the settings say otherwise.

    Raises:
        Missing, BadInput: as `Session` and `Conversation` do; nothing to compare.
    """

    def __init__(self, folder: Path, config: ChatConfig, compare: bool = False, sample: bool = False):
        self._folder, self._config = folder, config
        self.session = self._open(adapters=compare or config.adapter is not None)
        try:
            self.all = self._begun(compare, sample)
        except BaseException:
            self.session.close()
            raise
        self.last = self.all[-1]

    def _open(self, adapters: bool) -> Session:
        return Session(self._folder, self._config.device, self._config.kernels, adapters,
                       template_options(self._config.chat_template_kwargs))

    def _begun(self, compare: bool, sample: bool) -> list[Conversation]:
        s = self._config
        adapters: list[str | None] = [s.adapter]
        if compare:
            adapters = [None, *([s.adapter] if s.adapter else self.session.adapter_names())]
            if len(adapters) == 1:
                raise BadInput("no adapter to compare with", where=self._folder,
                               hint="phicli optimize --adapter NAME=FOLDER")
        sampling = self.session.sampling.settled(s, sample)
        return [Conversation(self.session, adapter=name, system=s.system, sampling=sampling,
                             max_new_tokens=s.max_new_tokens, stop=s.stop) for name in adapters]

    def use_adapter(self, name: str | None) -> None:
        """Let the last conversation answer with another adapter from now on; None for none.

        Raises:
            BadInput: no such adapter, or one that does not fit. Missing: it needs what the machine lacks.
        """
        if name is not None and (not self.session.takes_adapters or self.session.outdated):
            self.session.check_adapter(name)  # while the model that works is still there
            self._open_again()
        self.last.use_adapter(name)

    def _open_again(self) -> None:
        """Let a session with all adapters of the folder take the place of the one there is."""
        before = self.session.takes_adapters
        self.session.close()  # first: the memory may not hold two
        try:
            self._move_to(self._open(adapters=True))
        except PhicliError:
            self._move_to(self._open(before))
            raise

    def _move_to(self, session: Session) -> None:
        self.session = session
        for talk in self.all:
            talk.use_session(session)

    def __exit__(self, *error: object) -> None:
        self.session.close()
