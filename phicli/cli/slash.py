"""The commands of a conversation at the terminal: /adapter, /set and the like. They write through a function."""

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from phicli.cli.answers import summary
from phicli.cli.chat_file import read_chat, write_chat
from phicli.cli.chat_store import ChatStore
from phicli.cli.talks import Talks, model_called, models_beside, name_of
from phicli.config.commands import ChatConfig
from phicli.config.setting import Setting, expand, settings_of
from phicli.errors import BadInput, UsageError
from phicli.inference.sampling import Sampling
from phicli.text.layout import MERGED_SYSTEM

NONE, DEFAULT = "none", "default"
COMMANDS = {
    "/adapter": "[NAME]  answer with that adapter; none: without",
    "/model": "[NAME]  go on with another model, by name or folder",
    "/system": "[TEXT]  the system message; none: without",
    "/set": "[NAME VALUE]  such as temperature 0.9; default: as before",
    "/retry": "another answer to the last question",
    "/reset": "begin a new conversation",
    "/save": "[FILE]  the conversation as a row of JSON, fit for training",
    "/load": "[NUMBER or FILE]  go on with an earlier conversation",
    "/stats": "tokens and speed",
    "/help": "this list",
    "/exit": "leave (so does Ctrl-D)",
}
ALIASES = {"/adapters": "/adapter", "/settings": "/set", "/clear": "/reset", "/?": "/help", "/quit": "/exit",
           "/bye": "/exit"}
KEYS = ('Enter sends; Alt-Enter, or Enter between """ and """, begins a new line.',
        "Ctrl-C stops the answer; Ctrl-R finds an earlier message; Tab completes.",
        "// at the start is a plain /.")
SETTABLE: dict[str, Setting] = {
    name: setting for name, setting in settings_of(ChatConfig).items()
    if name in ("max_new_tokens", "stop", *(f.name for f in fields(Sampling)))}


class Slash:
    """Runs one command line. Upper and lower case are one; without an argument a command shows what there is.

    Args:
        talks: the conversations; /adapter and /stats are about the last one.
        store: where conversations are kept. ask: answers a message, for /retry. note: shows one line.
    """

    def __init__(self, talks: Talks, store: ChatStore, ask: Callable[[str], None], note: Callable[[str], None]):
        self.talks, self.store, self.note = talks, store, note
        self._ask, self.asked = ask, None  # type: Callable[[str], None], str | None

    def ask(self, question: str) -> None:
        """Ask the model."""
        self.asked = question
        self._ask(question)

    def run(self, line: str) -> bool:
        """Run it; False: it was to leave.

        Raises:
            PhicliError: it cannot be done; all is as it was.
        """
        name, _, rest = line.strip().partition(" ")
        name = ALIASES.get(name.lower(), name.lower())
        if name not in COMMANDS:
            self.note(f"unknown command {name}; /help lists them, // begins a message with a plain /")
        elif name == "/exit":
            return False
        else:
            getattr(self, "_" + name[1:])(rest.strip())
        return True

    def words(self) -> list[str]:
        """What can be completed: commands, and what can follow them."""
        follow = {"/adapter": [*self.talks.session.adapter_names(), NONE], "/set": SETTABLE, "/system": [NONE],
                  "/model": models_beside(self.talks.folder)}
        return [*COMMANDS, *ALIASES, *(f"{name} {word}" for name, words in follow.items() for word in words)]

    def _adapter(self, name: str) -> None:
        if name:
            self.talks.use_adapter(None if name.lower() == NONE else name)
        self.note(f"adapter: {self.talks.adapters_shown()}")

    def _model(self, name: str) -> None:
        if name:
            folder = model_called(name, self.talks.folder)
            self.talks.use_model(folder)
            self.store.move_to(folder)
            if self.talks.unfit:
                self.note(f"without an adapter: {self.talks.unfit}")
        for line in self.talks.described():
            self.note(line)
        others = [other for other in models_beside(self.talks.folder) if other != name_of(self.talks.folder)]
        if others and not name:
            self.note(f"others:   {', '.join(others)}; /model NAME goes on with one")

    def _system(self, text: str) -> None:
        if text:
            for talk in self.talks.all:
                talk.system = None if text.lower() == NONE else text
        last = self.talks.last
        self.note(f"system message: {last.system}" if last.system else "no system message")
        if last.merges_system:
            self.note(MERGED_SYSTEM)

    def _set(self, rest: str) -> None:
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        name, value = name.lower().replace("-", "_"), value.strip()
        if name and name not in SETTABLE:
            raise UsageError(f"'{name}' cannot be set here; what can: {', '.join(SETTABLE)}", where="/set")
        if value:
            self.talks.change(name, _value_of(SETTABLE[name], value))
        for shown in [name] if name else SETTABLE:
            self.note(f"{shown:20}{self._value(shown)}")
        if not name:
            self.note(f"the model's own: {self.talks.session.sampling}")

    def _value(self, name: str) -> str:
        talk = self.talks.last
        value: Any = getattr(talk if hasattr(talk, name) else talk.sampling, name)
        return ", ".join(map(repr, value)) or NONE if isinstance(value, tuple) else f"{value:g}"

    def _retry(self, rest: str) -> None:
        last = self.talks.last
        question = self.asked or (last.turns[-1][0] if last.turns else None)
        if question is None:
            raise UsageError("nothing was asked yet", where="/retry")
        for talk in self.talks.all:
            if talk.turns and talk.turns[-1][0] == question:  # else it was stopped before its first word
                talk.take_back()
                if talk is last:
                    self.store.take_back()
        if last.sampling.temperature == 0:
            self.note("greedy: the same answer comes again; /set temperature 0.7 makes others")
        self.ask(question)

    def _reset(self, rest: str) -> None:
        for talk in self.talks.all:
            talk.reset()
        self.asked = None
        self.store.begin_anew()
        self.note("a new conversation begins")

    def _save(self, name: str) -> None:
        last = self.talks.last
        if not name:
            kept = f"kept as number {self.store.number}" if self.store.keeps and self.store.number else "not kept"
            self.note(f"{len(last.turns)} turns, {kept}; /save FILE writes them to a file")
            return
        path = Path(expand(name))
        write_chat(path, last.system, last.turns)
        self.note(f"{len(last.turns)} turns written to {path}")

    def _load(self, name: str) -> None:
        if not name:
            for number, at, question in self.store.recent():
                first = " ".join(str(question).split())
                self.note(f"{number:4}  {time.strftime('%Y-%m-%d %H:%M', time.localtime(at))}  {first[:50]}")
            self.note("/load NUMBER goes on with one of these, /load FILE with what /save wrote")
            return
        kept = self.store.load(int(name)) if name.isdecimal() and len(name) < 10 else read_chat(Path(expand(name)))
        if kept is None:
            raise BadInput("no conversation with this number", where=name, hint="/load lists them")
        self.talks.resume(kept.turns, kept.system)
        if not name.isdecimal():
            self.store.begin_anew()
            for turn in kept.turns:
                self.store.add(*turn, kept.system, self.talks.last.adapter)
        elif kept.adapter is None or kept.adapter in self.talks.session.adapter_names():
            self._adapter(kept.adapter or NONE)
        self.asked = None
        self.show_last()

    def show_last(self) -> None:
        """How many turns there are, and how the last one begins."""
        turns = self.talks.last.turns
        self.note(f"{len(turns)} turns so far; the last:")
        for mark, text in zip((">", " "), turns[-1] if turns else (), strict=False):
            short = " ".join(text.split())
            self.note(f"{mark} {short if len(short) < 76 else short[:75] + '…'}")

    def _stats(self, rest: str) -> None:
        talk = self.talks.last
        self.note(f"turns: {len(talk.turns)}, tokens: {talk.cached_tokens} of {talk.session.context}, "
                  f"adapter: {talk.adapter or NONE}, on {talk.session.provider}")
        if talk.last:
            self.note("last answer: " + summary(talk.last))
            rate = f", {talk.last.prefill_rate:.0f} tok/s" if talk.last.prefill_rate else ""
            self.note(f"its prompt: {talk.last.prefill_tokens} tokens after {talk.last.cached_tokens} kept{rate}")

    def _help(self, rest: str) -> None:
        for name, meaning in COMMANDS.items():
            self.note(f"{name:9} {meaning}")
        for line in KEYS:
            self.note(line)


def _value_of(setting: Setting, text: str) -> Any:
    if text.lower() == DEFAULT:
        return setting.default
    try:
        return (text,) if setting.kind is tuple else setting.kind(text)
    except ValueError:
        raise UsageError(f"'{text[:40]}' is no {setting.kind.__name__}", where="/set") from None
