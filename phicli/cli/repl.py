"""The loop of questions and answers at a terminal, with its commands. It reads and writes through functions."""

from collections.abc import Callable, Sequence

from phicli.cli.interrupt import interruptible
from phicli.errors import PhicliError
from phicli.inference.answer import Answer
from phicli.inference.conversation import Conversation
from phicli.text.layout import MERGED_SYSTEM

COMMANDS = {
    "/adapter": "NAME: answer with that adapter from now on; without NAME: with none",
    "/adapters": "the adapters there are",
    "/system": "TEXT: the system message; without TEXT: none",
    "/reset": "forget the conversation",
    "/settings": "how answers are drawn and what ends them",
    "/stats": "tokens and speed",
    "/help": "this list",
    "/exit": "leave (so does Ctrl-D)",
}
KEYS = ("Enter sends, Alt-Enter begins a new line, Ctrl-C stops the answer,", "// at the start is a plain /.")
NO_ADAPTER = "none"


def summary(answer: Answer) -> str:
    """One line on an answer's speed, and on how it ended if the model did not end it."""
    parts = [f"{answer.answer_tokens} tokens"]
    if answer.decode_rate:
        parts.append(f"{answer.decode_rate:.1f} tok/s")
    if answer.answer_tokens:
        parts.append(f"first token after {answer.first_token_seconds:.2f} s")
    if answer.prefill_rate and answer.answer_tokens:
        kept = f" after {answer.cached_tokens} kept" if answer.cached_tokens else ""
        parts.append(f"prompt {answer.prefill_tokens} tokens{kept}, {answer.prefill_rate:.0f} tok/s")
    ends = {"length": "cut at --max-new-tokens", "context": "the context is full", "interrupted": "stopped",
            "repetition": "ended as it loops"}
    parts += [ends[answer.finish_reason]] if answer.finish_reason in ends else []
    return "; ".join(parts)


class Repl:
    """Reads messages until the end and answers them.

    Args:
        talks: the conversations, several when answers are compared; /adapter and /stats act on the last.
        answer: answers one message and shows the answer; given the message and a function that says when to stop.
        use_adapter: lets the last conversation answer with another adapter from now on, or with none.
        read: gives the next message; raises EOFError at the end, KeyboardInterrupt when the line is given up.
        note: shows one line beside the answers. fail: shows an error; the loop goes on.
    """

    def __init__(self, talks: Sequence[Conversation], answer: Callable[[str, Callable[[], bool]], None],
                 use_adapter: Callable[[str | None], None], read: Callable[[], str], note: Callable[[str], None],
                 fail: Callable[[PhicliError], None]):
        self.talks, self.talk = talks, talks[-1]
        self.answer, self.use_adapter, self.read, self.note, self.fail = answer, use_adapter, read, note, fail

    def run(self) -> None:
        while True:
            try:
                line = self.read()
            except KeyboardInterrupt:
                self.note("Ctrl-D leaves")
                continue
            except EOFError:
                return
            if not line.strip():
                continue
            if line.strip() == "/exit":
                return
            try:
                self.take(line)
            except PhicliError as e:
                self.fail(e)

    def take(self, line: str) -> None:
        """One command or message."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.strip().partition(" ")
            if name not in COMMANDS:
                self.note(f"unknown command {name}; /help lists them, // begins a message with a plain /")
                return
            getattr(self, "_" + name[1:])(rest.strip())
            return
        with interruptible() as stopped:
            self.answer(line[1:] if line.startswith("//") else line, stopped)

    def words(self) -> list[str]:
        """What can be completed: commands, and /adapter with each name."""
        names = [*self.talk.session.adapter_names(), NO_ADAPTER]
        return [*COMMANDS, *(f"/adapter {name}" for name in names)]

    def _adapter(self, name: str) -> None:
        wanted = None if name in ("", NO_ADAPTER) else name
        self.use_adapter(wanted)
        self.note(f"adapter: {wanted or NO_ADAPTER}")

    def _adapters(self, rest: str) -> None:
        names = self.talk.session.adapter_names()
        for name in names:
            self.note(f"{'*' if name == self.talk.adapter else ' '} {name}")
        if not names:
            self.note("none; phicli optimize --adapter NAME=FOLDER adds one")

    def _system(self, text: str) -> None:
        for talk in self.talks:
            talk.system = text or None
        self.note("system message set" if text else "no system message")
        if self.talk.merges_system:
            self.note(MERGED_SYSTEM)

    def _reset(self, rest: str) -> None:
        for talk in self.talks:
            talk.reset()
        self.note("conversation forgotten")

    def _settings(self, rest: str) -> None:
        talk = self.talk
        self.note(f"sampling: {talk.sampling}")
        self.note(f"default:  {talk.session.sampling}")
        self.note(f"an answer has at most {talk.max_new_tokens} tokens, and ends before: "
                  f"{', '.join(map(repr, talk.stop)) or 'no text'}")

    def _stats(self, rest: str) -> None:
        talk = self.talk
        self.note(f"turns: {len(talk.turns)}, tokens: {talk.cached_tokens} of {talk.session.context}, "
                  f"adapter: {talk.adapter or NO_ADAPTER}, on {talk.session.provider}")
        if talk.last:
            self.note("last answer: " + summary(talk.last))

    def _help(self, rest: str) -> None:
        for name, meaning in COMMANDS.items():
            self.note(f"{name:10} {meaning}")
        for line in KEYS:
            self.note(line)
