"""Builds the corpus: documents from the pattern files and the task generators, deterministic by seed."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
from collections.abc import Iterator
from itertools import accumulate

from .exchange import Turns
from .grammar import TEXT, Lexicon, Writer
from .number_tasks import NUMBER_TASKS
from .text_tasks import TEXT_TASKS

SHARE_CHAT, SHARE_TASK = 0.5, 0.16
_SYSTEM = [
    "You are a helpful assistant.",
    "You are a small language model. Answer in {one or two|a few} sentences.",
    "You are a {friendly|kind|polite|patient} assistant{ who gives short answers|}.",
    "Answer {briefly|shortly and clearly|in simple English|in plain words}.",
    "You {help people with everyday questions|answer simple questions}.{ Be {polite|brief|clear}.|}",
    "You are a {travel|cooking|shopping|study|garden|health} {assistant|guide|helper}.",
    "You are a {travel|cooking|shopping|study} assistant. Answer {briefly|in short sentences}.",
    "Be {brief|helpful|kind} and say so when you do not know something.",
]


def _blocks(pattern: str, splitter: str) -> Iterator[str]:
    for path in sorted(TEXT.glob(pattern)):
        text = re.sub(r"(?m)^#.*\n", "", path.read_text(encoding="utf-8"))
        yield from (block.strip() for block in re.split(splitter, text) if block.strip())


def _richness(text: str) -> int:
    """The weight of a piece of prose: its slots, where one for a whole sentence counts more."""
    return 1 + text.count("$") + 3 * (text.count("$free") + text.count("$guide"))


def load_chats() -> list[list[tuple[str, list[str]]]]:
    """Every block of the `.chat` files as turns; a turn written on several lines has that many wordings."""
    chats = []
    for block in _blocks("*.chat", r"\n\s*\n"):
        turns: list[tuple[str, list[str]]] = []
        for line in block.splitlines():
            role, wording = line[0], line[2:].strip()
            if line[1] != ":" or role not in "UA":
                raise ValueError(f"not a turn: {line!r}")
            if not turns or turns[-1][0] != role:
                turns.append((role, []))
            turns[-1][1].append(wording)
        chats.append(turns)
    return chats


def tidy(text: str) -> str:
    """Without the spaces that an empty choice leaves behind."""
    return re.sub(r" {2,}", " ", text).replace(" \n", "\n").strip()


def casual(text: str, rng: random.Random) -> str:
    """What a user may type: now and then without a capital or the last mark."""
    if rng.random() < 0.08:
        text = text[0].lower() + text[1:] if not text.startswith(("I ", "I'")) else text
    if rng.random() < 0.12 and text[-1] in ".?!":
        text = text[:-1]
    return text


def render(turns: Turns, system: str | None = None) -> str:
    """The conversation in Phi-3's chat form."""
    names = {"U": "user", "A": "assistant"}
    opening = f"<|system|>\n{system}<|end|>\n" if system else ""
    return opening + "".join(f"<|{names[role]}|>\n{text}<|end|>\n" for role, text in turns)


class Shard:
    """Writes one part of the corpus from its own seed."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.writer = Writer(Lexicon(), self.rng)
        self.chats = load_chats()
        self.weights = list(accumulate(sum(len(wordings) for _, wordings in chat) for chat in self.chats))
        self.prose = list(_blocks("*.prose", r"\n---\n"))
        self.prose_weights = list(accumulate(_richness(text) for text in self.prose))

    def exchange(self) -> Turns:
        """One exchange from a pattern or a task."""
        if self.rng.random() < SHARE_TASK / (SHARE_TASK + SHARE_CHAT):
            return self.rng.choice(NUMBER_TASKS + TEXT_TASKS)(self.rng, self.writer.fresh())
        chat = self.rng.choices(self.chats, cum_weights=self.weights)[0]
        self.writer.fresh()
        return [(role, tidy(self.writer.write(self.rng.choice(wordings)))) for role, wordings in chat]

    def document(self) -> str:
        """A conversation of one or more exchanges, or a piece of prose."""
        if self.rng.random() > SHARE_CHAT + SHARE_TASK:
            return tidy(
                self.writer.fresh().write(self.rng.choices(self.prose, cum_weights=self.prose_weights)[0])
            )
        turns: Turns = []
        for _ in range(self.rng.choices((1, 2, 3, 4), (60, 22, 12, 6))[0]):
            turns += self.exchange()
        system = self.writer.write(self.rng.choice(_SYSTEM)) if self.rng.random() < 0.25 else None
        spoken = [(role, casual(text, self.rng) if role == "U" else text) for role, text in turns]
        return render(spoken, system)


def vocabulary_texts(repeats: int = 60) -> list[str]:
    """The words that the tokenizer should know even where the corpus has them seldom: places and topics."""
    lists = Lexicon().lists
    columns = [row[key] for row in lists["country"] for key in ("name", "capital", "language")]
    words = [word for row in lists["topic"] for word in row["words"].split(", ")]
    named = [f"in {name}, {name}." for name in [*lists["city"], *columns]]
    return named * (2 * repeats) + [f"the {word}" for word in words] * repeats


def _write_shard(job: tuple[str, int]) -> list[str]:
    shard = Shard(job[0])
    return [shard.document() for _ in range(job[1])]


def build_corpus(documents: int, seed: int = 0, shards: int = 64) -> list[str]:
    """`documents` distinct documents at most (repeats are dropped), the same for the same arguments."""
    jobs = [(f"{seed}-{number}", documents // shards) for number in range(shards)]
    with multiprocessing.Pool(min(os.cpu_count() or 1, 16)) as pool:
        parts = pool.map(_write_shard, jobs, chunksize=1)
    return list(dict.fromkeys(text for part in parts for text in part))
