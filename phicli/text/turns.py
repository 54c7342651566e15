"""Which part of a laid-out conversation a model says itself, from where its turn begins to the token that ends it.

A template is followed, not understood: stand-ins in what it puts out tell whose message they are, what it puts out
for the conversation up to a turn tells where that begins, and what it puts out after a plain answer is what ends one.
`{% generation %}` in a template says it in so many words.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from phicli.errors import BadInput
from phicli.text.conversation import Conversation
from phicli.text.foreign import PRIVATE, Alphabet
from phicli.text.layout import ASSISTANT, USER, ChatLayout, Message

Span = tuple[int, int]
REMEMBERED = 1 << 8  # prompts
PRIVATE_USE = re.compile("[" + "".join(f"{chr(span[0])}-{chr(span[-1])}" for span in PRIVATE) + "]+")


class Run(NamedTuple):
    """Characters of one message, with a template's own between them but none of another message."""

    owner: int
    begin: int
    end: int


class LaidOut(NamedTuple):
    """A conversation as a template puts it out, in stand-ins of an alphabet, and whose they are."""

    conversation: Conversation
    text: str
    alphabet: Alphabet
    runs: Sequence[Run]


class Turns:
    """Where turns begin and end in what a chat template puts out. control: finds control tokens in text."""

    def __init__(self, layout: ChatLayout, control: re.Pattern[str]):
        self.layout, self.control = layout, control
        self._prompts: dict[tuple[str, bool, str | None], int] = {}  # what stood before turns: the prompt's length

    @cached_property
    def end(self) -> str | None:
        """The control token that ends an answer; None if the template puts none there.

        It is the first one behind an answer; or eos_token behind that, if it stands there too where a question follows.
        """
        plain = [{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "b"}]
        text, alphabet = self.layout.foreign(plain, False)
        said = max((run.end for run in runs_of(text, alphabet) if run.owner == 1), default=len(text))
        try:
            longer = self.layout.render([*plain, plain[0]], False, alphabet=alphabet)
        except BadInput:  # it takes one question only
            longer = ""
        lasting = self.control.findall(text[said : _common(text, longer)])
        found = self.control.search(text, said)
        return self.layout.eos if self.layout.eos in lasting else found[0] if found else None

    def spans(self, conversation: Conversation, text: str, alphabet: Alphabet) -> list[Span]:
        """Begin and end, in the text in stand-ins, of each turn that is learnt and that the template shows.

        Raises:
            BadInput: the template leaves out a call that is learnt, or changes a conversation so that its parts cannot
                be told apart.
        """
        laid = LaidOut(conversation, text, alphabet, runs_of(text, alphabet))
        if not laid.runs and any(message.get("content") for message in conversation.messages):
            raise BadInput("chat template: it hides which part of a conversation is whose", where=self.layout.folder)
        self._check_calls(laid)
        opening, closing = alphabet.marks
        if opening in text:
            marked = re.finditer(f"{opening}([^{closing}]*){closing}", text)
            return [(match.start(1), self._with_end(text, match.end(1))) for match in marked
                    if any(conversation.trained[number] for number in _speakers(laid, *match.span(1)))]
        spans = [self._span(laid, number) for number, learnt in enumerate(conversation.trained) if learnt]
        return sorted(span for span in spans if span)

    def _check_calls(self, laid: LaidOut) -> None:
        """Raises BadInput: the model would learn to say nothing where it is to call."""
        for number, message in enumerate(laid.conversation.messages):
            for call in message.get("tool_calls") or () if laid.conversation.trained[number] else ():
                name = call["function"]["name"]
                if laid.alphabet.hide(name, number) not in laid.text:
                    raise BadInput(f"chat template: it does not show the call of {name[:40]!r}",
                                   where=self.layout.folder, hint="--chat-template FILE with one that knows tools")

    def _span(self, laid: LaidOut, number: int) -> Span | None:
        """A message's first run, from the begin of its turn to the token that ends it; None if it is not shown."""
        at = next((at for at, run in enumerate(laid.runs) if run.owner == number), None)
        before = laid.runs[:at] if at is not None else [run for run in laid.runs if run.owner < number]
        floor = max((run.end for run in before), default=0)
        following = min((run.begin for run in laid.runs if run.owner > number and run.begin >= floor),
                        default=len(laid.text))
        if at is None:  # an empty answer: what is learnt is that it ends
            begin = self._begin(laid, number, floor, following)
            end = self._end(laid, number, floor, begin or floor, following)
            return (begin, end) if begin is not None and end > begin else None
        run = laid.runs[at]
        begin = self._begin(laid, number, floor, run.begin)
        said = self._without_echo(laid, laid.conversation.messages[number], run)
        return run.begin if begin is None else begin, self._end(laid, number, said, said, following)

    def _without_echo(self, laid: LaidOut, message: Message, run: Run) -> int:
        """Where a message ends whose template names the function that it calls once more, over the result."""
        for call in message.get("tool_calls") or ():
            name = laid.alphabet.hide(call["function"]["name"], run.owner)
            again = run.end - len(name)
            if laid.text.startswith(name, again) and name in laid.text[run.begin : again]:
                end = max(at for at in range(run.begin, again) if laid.text[at] in laid.alphabet.owners) + 1
                if self.control.search(laid.text, end, again):
                    return end
        return run.end

    def _begin(self, laid: LaidOut, number: int, floor: int, said: int) -> int | None:
        """Where the prompt for a message ends, between what was said before and itself; None if it is not there.

        A template may close in one way what it opens in another, such as `<think></think>` for a prompt that ends in
        `<think>` and a new line: the prompt is then what both begin with.
        """
        gap, messages = laid.text[floor:said], laid.conversation.messages[:number]
        key = gap, bool(laid.conversation.tools), messages[-1]["role"] if messages else None
        if key in self._prompts:
            return floor + self._prompts[key]
        prompt = self._behind(laid, messages, True)
        if prompt is None:  # nothing was said before, say
            return None
        if gap.startswith(prompt):
            if len(self._prompts) >= REMEMBERED:
                self._prompts.clear()
            self._prompts[key] = len(prompt)
            return floor + len(prompt)
        edges = {edge for match in self.control.finditer(prompt) for edge in match.span()}
        shared = max((edge for edge in edges if gap.startswith(prompt[:edge])), default=0)
        others = set(self.control.findall(prompt[shared:]))
        return floor + shared if shared and others.isdisjoint(self.control.findall(gap[shared:])) else None

    def _end(self, laid: LaidOut, number: int, floor: int, said: int, following: int) -> int:
        """Behind the token that ends a turn of which nothing is said from `said` on, or `said` if none does.

        Where another control token comes first, as at calls of tools, it is looked for in what stands there too if
        nothing follows; and is the last of them if it is not there.
        """
        first = self.control.search(laid.text, said, following)
        if not first or first[0] == self.end:
            return first.end() if first else said
        alone = self._behind(laid, laid.conversation.messages[: number + 1], False)
        lasting = following if alone is None else floor + _common(laid.text[floor:following], alone)
        ends = {match[0]: match.end() for match in self.control.finditer(laid.text[:lasting], said)}
        return ends.get(self.end or "", max(ends.values(), default=said))

    def _behind(self, laid: LaidOut, messages: Sequence[Message], prompt: bool) -> str | None:
        """What the template puts behind all that these messages say; None if it refuses them."""
        try:
            text = self.layout.render(messages, prompt, tools=laid.conversation.tools, alphabet=laid.alphabet)
        except BadInput:
            return None
        return text[max((run.end for run in runs_of(text, laid.alphabet)), default=0) :]

    def _with_end(self, text: str, end: int) -> int:
        """The end of a marked part, with the token that ends the turn where it comes right after."""
        behind = end + 1  # the mark itself
        return behind + len(self.end) if self.end and text.startswith(self.end, behind) else end


def runs_of(text: str, alphabet: Alphabet) -> list[Run]:
    """Whose the characters of a text in stand-ins are."""
    found: list[Run] = []
    for match in PRIVATE_USE.finditer(text):
        at = match.start()
        if len({alphabet.owners.get(c) for c in set(match[0])}) == 1:
            pieces = [(alphabet.owners.get(match[0][0]), len(match[0]))]
        else:
            pieces = [(owner, len(list(piece))) for owner, piece in groupby(match[0], alphabet.owners.get)]
        for owner, length in pieces:
            if owner is not None:
                begin = found.pop().begin if found and found[-1].owner == owner else at
                found.append(Run(owner, begin, at + length))
            at += length
    return found


def marked(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token, by its place in a text, whether it begins in one of the spans."""
    mask = [False] * len(offsets)
    for begin, end in spans:
        for at in range(bisect_left(offsets, (begin,)), bisect_left(offsets, (end,))):
            mask[at] = True
    return mask


def _speakers(laid: LaidOut, begin: int, end: int) -> Sequence[int]:
    """The messages to which a part may belong that the template itself marks: those in it, or if there are none, those
    between what was said before it and after it."""
    inside = [run.owner for run in laid.runs if run.begin < end and run.end > begin and run.owner >= 0]
    before = max((run.owner for run in laid.runs if run.end <= begin), default=0)
    after = (run.owner for run in laid.runs if run.begin >= end and run.owner > before)
    return inside or range(max(before, 0), min(after, default=len(laid.conversation.trained)))


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
