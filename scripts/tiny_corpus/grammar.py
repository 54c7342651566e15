"""A small text grammar.

A pattern is text with `{this|or this}` choices and `$slots`. `$animal` takes any entry of the list `animal`;
`$animal1` takes one and keeps it for the whole document, and never the one that `$animal2` has. A slot may
name a column of a table (`$country1.capital`); a capital letter in a slot's name capitalises what it gives.
Entries are patterns themselves. `a(n)` becomes "a" or "an" by the word that follows.
"""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

TEXT = Path(__file__).parent / "text"
_TOKEN = re.compile(r"[{|}]|\$[A-Za-z_]+\d*(?:\.[a-z]+)?|[^{|}$]+|\$")
_SLOT = re.compile(r"\$([A-Za-z_]+)(\d*)(?:\.([a-z]+))?$")
_ARTICLE = re.compile(r"\b([Aa])\(n\) (\w+)")
_LIKE_CONSONANT = re.compile(r"(?:uni|use|usu|euro|one\b|once\b)", re.IGNORECASE)
_LIKE_VOWEL = re.compile(r"(?:[aeiou]|hour|honest)", re.IGNORECASE)

Node = str | tuple


@cache
def parse(pattern: str) -> tuple[Node, ...]:
    """The pattern as a sequence of plain strings, slots and choices."""
    stack: list[list[list[Node]]] = [[[]]]
    for token in _TOKEN.findall(pattern):
        slot = _SLOT.match(token)
        if token == "{":
            stack.append([[]])
        elif token == "|" and len(stack) > 1:
            stack[-1].append([])
        elif token == "}" and len(stack) > 1:
            choices = stack.pop()
            stack[-1][-1].append(("choice", tuple(tuple(choice) for choice in choices)))
        elif slot:
            name, number, column = slot.groups()
            stack[-1][-1].append(("slot", name[0].lower() + name[1:], number, column, name[0].isupper()))
        else:
            stack[-1][-1].append(token)
    if len(stack) != 1:
        raise ValueError(f"a brace is left open: {pattern!r}")
    return tuple(stack[0][0])


def fix_articles(text: str) -> str:
    """`a(n)` as the following word wants it."""

    def article(match: re.Match[str]) -> str:
        letter, word = match.groups()
        vowel = _LIKE_VOWEL.match(word) and not _LIKE_CONSONANT.match(word)
        return f"{letter}{'n' if vowel else ''} {word}"

    return _ARTICLE.sub(article, text) if "(n)" in text else text


class Lexicon:
    """The lists of `text/*.words`.

    `name: entry, entry` is a list, `name=:` one with an entry a line, and `name(column, column):` a table
    with a row a line and `|` between the cells.
    """

    def __init__(self) -> None:
        self.lists: dict[str, list[str | dict[str, str]]] = {}
        for path in sorted(TEXT.glob("*.words")):
            for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
                lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
                if lines:
                    self._add(lines)

    def _add(self, lines: list[str]) -> None:
        head = re.match(r"(\w+)(?:\(([^)]*)\))?(=?):\s*(.*)", lines[0])
        if not head:
            raise ValueError(f"not the head of a list: {lines[0]!r}")
        name, columns, by_line, rest = head.groups()
        body = [rest, *lines[1:]] if rest else lines[1:]
        entries = self.lists.setdefault(name, [])
        if columns:
            keys = [column.strip() for column in columns.split(",")]
            for row in body:
                cells = [cell.strip() for cell in row.split("|")]
                if len(cells) != len(keys):
                    raise ValueError(f"{name}: {row!r} has {len(cells)} cells, not {len(keys)}")
                entries.append(dict(zip(keys, cells, strict=True)))
        elif by_line:
            entries.extend(line.strip() for line in body)
        else:
            entries.extend(word.strip() for word in " ".join(body).split(",") if word.strip())


class Writer:
    """Expands the patterns of one document: numbered slots keep their value until `fresh`."""

    def __init__(self, lexicon: Lexicon, rng: random.Random) -> None:
        self.lexicon, self.rng = lexicon, rng
        self.bound: dict[tuple[str, str], str | dict[str, str]] = {}

    def fresh(self) -> Writer:
        """Forgets the numbered slots."""
        self.bound.clear()
        return self

    def write(self, pattern: str) -> str:
        """One expansion of the pattern."""
        return fix_articles(self._expand(parse(pattern)))

    def _expand(self, nodes: tuple[Node, ...]) -> str:
        out: list[str] = []
        for node in nodes:
            if isinstance(node, str):
                out.append(node)
            elif node[0] == "choice":
                out.append(self._expand(self.rng.choice(node[1])))
            else:
                value = self._slot(*node[1:4])
                out.append(value[:1].upper() + value[1:] if node[4] else value)
        return "".join(out)

    def _slot(self, name: str, number: str, column: str | None) -> str:
        entry = self.bound.get((name, number)) if number else None
        if entry is None:
            entry = self._pick(name)
            if number:
                self.bound[name, number] = entry
        if isinstance(entry, dict):
            return entry[column] if column else next(iter(entry.values()))
        return entry

    def _pick(self, name: str) -> str | dict[str, str]:
        taken = [value for (other, _), value in self.bound.items() if other == name]
        entries = self.lexicon.lists[name]
        entry = self.rng.choice(entries)
        for _ in range(20):
            if entry not in taken:
                break
            entry = self.rng.choice(entries)
        return self._expand(parse(entry)) if isinstance(entry, str) else entry
