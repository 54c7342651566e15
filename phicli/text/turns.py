"""Which part of a laid-out conversation a model says itself, from where its turn begins to the token that ends it.

A template is followed, not understood: stand-ins in what it puts out tell whose message they are, what it puts out
for the conversation up to a turn tells where that begins, and what it puts out after a plain answer is what ends one.
`{% generation %}` in a template says it in so many words.
"""

import re
from collections.abc import Sequence
from functools import cached_property

from phicli.errors import BadInput
from phicli.text.conversation import Conversation
from phicli.text.foreign import Alphabet
from phicli.text.layout import ASSISTANT, USER, ChatLayout

Span = tuple[int, int]


class Turns:
    """Where turns begin and end in what a chat template puts out. control: finds control tokens in text."""

    def __init__(self, layout: ChatLayout, control: re.Pattern[str]):
        self.layout, self.control = layout, control
        self._prompt = ""  # as the turn before began, tried first

    @cached_property
    def end(self) -> str | None:
        """The control token after an answer, as text; None if the template puts none there."""
        plain = [{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "b"}]
        text, alphabet = self.layout.foreign(plain, False)
        said = [at for at, c in enumerate(text) if alphabet.owners.get(c) == 1]
        found = self.control.search(text, said[-1] + 1) if said else None
        return found[0] if found else None

    def spans(self, conversation: Conversation, text: str, alphabet: Alphabet) -> list[Span]:
        """Begin and end, in the text in stand-ins, of each message that is learnt; an empty message has none.

        Raises:
            BadInput: the template changes a conversation so that its parts cannot be told apart.
        """
        owned = [(at, alphabet.owners[c]) for at, c in enumerate(text) if c in alphabet.owners]
        if not owned and any(message.get("content") for message in conversation.messages):
            raise BadInput("chat template: it hides which part of a conversation is whose", where=self.layout.folder)
        first, last = dict[int, int](), dict[int, int]()
        for at, owner in owned:
            first.setdefault(owner, at)
            last[owner] = at
        marked = _between(text, *alphabet.marks)
        found, done = list[Span](), 0
        for number, learnt in enumerate(conversation.trained):
            if learnt and number in first:
                begin, end = first[number], last[number] + 1
                inside = [span for span in marked if span[0] <= begin < span[1]]
                if inside:
                    begin, end = inside[0]
                else:
                    begin = self._begin(conversation, number, text, begin, done, alphabet)
                    following = min((at for at in first.values() if at >= end), default=len(text))
                    end = self._after(text, end, following)
                found.append((begin, end if not inside else self._with_end(text, end)))
            done = max(done, last.get(number, 0) + 1)
        return found

    def _begin(self, conversation: Conversation, number: int, text: str, said: int, floor: int,
               alphabet: Alphabet) -> int:
        """Where the turn begins in which message `number` says something at `said`."""
        if self._prompt and text.endswith(self._prompt, floor, said):
            return said
        messages = conversation.messages[:number]
        try:
            before = self.layout.render(messages, True, tools=conversation.tools, alphabet=alphabet)
        except BadInput:  # nothing was said before, say
            return said
        self._prompt = before[max((at + 1 for at, c in enumerate(before) if c in alphabet.owners), default=0) :]
        return len(before) if text.startswith(before) and len(before) <= said else said

    def _after(self, text: str, said: int, following: int) -> int:
        at = text.find(self.end, said, following) if self.end else -1
        return at + len(self.end) if self.end and at >= 0 else said

    def _with_end(self, text: str, end: int) -> int:
        """The end of a marked part, with the token that ends the turn where it comes right after."""
        behind = end + 1  # the mark itself
        return behind + len(self.end) if self.end and text.startswith(self.end, behind) else end


def marked(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token, by its place in a text, whether it begins in one of the spans (in order, not overlapping)."""
    mask, todo = [], list(spans)
    for begin, _ in offsets:
        while todo and todo[0][1] <= begin:
            todo.pop(0)
        mask.append(bool(todo) and todo[0][0] <= begin)
    return mask


def _between(text: str, opening: str, closing: str) -> list[Span]:
    return [(match.start() + 1, match.end() - 1) for match in re.finditer(f"{opening}[^{closing}]*{closing}", text)]
