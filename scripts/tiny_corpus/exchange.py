"""What the task generators share."""

from __future__ import annotations

import random
from collections.abc import Callable

from .grammar import Writer

Turns = list[tuple[str, str]]
Task = Callable[[random.Random, Writer], Turns]


def ask(writer: Writer, questions: list[str], answers: list[str]) -> Turns:
    """One exchange with a wording of each side."""
    return [
        ("U", writer.write(writer.rng.choice(questions))),
        ("A", writer.write(writer.rng.choice(answers))),
    ]


def listed(items: list[str]) -> str:
    """`a, b and c`."""
    return ", ".join(items[:-1]) + " and " + items[-1]
