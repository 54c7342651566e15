"""The part of the corpus that is written out, row by row: real words in many turns of phrase, real places."""

from __future__ import annotations

import json
import random

from .builder import casual, render
from .grammar import TEXT


def written_rows() -> list[tuple[str, str]]:
    """Every prompt and response of the `written_*.jsonl` files."""
    rows = []
    for path in sorted(TEXT.glob("written_*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append((row["prompt"], row["response"]))
    return rows


def written_texts(repeats: int, seed: int) -> list[str]:
    """The rows as conversations of one to three exchanges, each time in another order and company."""
    rng = random.Random(seed)
    documents = []
    for _ in range(repeats):
        rows = written_rows()
        rng.shuffle(rows)
        while rows:
            count = rng.choices((1, 2, 3), (70, 20, 10))[0]
            turns = []
            for prompt, response in rows[:count]:
                turns += [("U", casual(prompt, rng)), ("A", response)]
            del rows[:count]
            documents.append(render(turns))
    return documents
