"""What a stranger's regular expressions and rules of replacement may cost, judged before they are used."""

import base64
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]  # the only parser of patterns at hand
from typing import Any

from phicli.artifacts.reading import parse_json
from phicli.errors import BadInput

LONGEST = 4096  # characters of a pattern; those of known tokenizers have some 500
LOOSE = 8  # a repetition of at most so many counts as a choice, not as one without bound
CHOICES = 12
GROWTH = 64  # characters that a tokenizer's rules of replacement may make of one
# What Python's parser does not know of Oniguruma's: sets and escapes (any character will do), names, flags.
SETS = re.compile(r"\[\^?(?:\\.|\[(?:\\.|[^\]\\])*\]|[^\]\\])*\]|\\[pPx]\{[^}]*\}|\\.", re.DOTALL)
NAMED, FLAGS = re.compile(r"\(\?<(?=\w)"), re.compile(r"\(\?[a-zA-Z-]+\)")
MAP, ESCAPED = "precompiled_charsmap", re.compile(r"\\u00[2-7]")  # letters in escapes could spell its name
REPEATS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT}


def check_pattern(pattern: str, where: str | Path, *, most: int = 3, of_python: bool = True) -> None:
    """Refuse a pattern whose matching time grows faster than the text's length to the power of `most` + 1.

    No repetition may hold a choice (alternatives, a repetition of variable length), and at most `most` repetitions
    without bound stand in one alternative. Patterns of tokenizers that are in use have two.

    Raises:
        BadInput: such a pattern, or none at all.
    """
    simple = pattern if of_python else NAMED.sub("(?P<", FLAGS.sub("", SETS.sub("x", pattern)))
    try:
        with warnings.catch_warnings(action="ignore"):
            unbounded, choices = _cost(_parser.parse(simple)) if len(pattern) <= LONGEST else (most + 1, 0)
    except (re.error, ValueError, OverflowError, RecursionError) as e:
        raise BadInput(f"the regular expression {pattern[:60]!r}: {e}", where=where) from None
    if unbounded > most or choices > CHOICES:
        raise BadInput(f"the regular expression {pattern[:60]!r} could take time without end", where=where)


def _cost(tree: Iterable[tuple[Any, Any]]) -> tuple[int, int]:
    """Repetitions without bound and choices along the dearest way through. Raises ValueError: one in another."""
    unbounded = choices = 0
    for kind, given in tree:
        if kind in REPEATS:
            low, high, inner = given
            found = _cost(inner)
            if high > 1 and any(found):
                raise ValueError("a repetition in a repetition could take time without end")
            found = (found[0] + (high > LOOSE and high != low), found[1] + (low != high))
        elif kind is _constants.BRANCH:
            costs = [_cost(inner) for inner in given[1]]
            found = (max(c[0] for c in costs), max(c[1] for c in costs) + 1)
        elif kind in (_constants.SUBPATTERN, _constants.ASSERT, _constants.ASSERT_NOT):
            found = _cost(given[-1])
        elif kind is _constants.ATOMIC_GROUP:
            found = _cost(given)
        elif kind is _constants.GROUPREF_EXISTS:
            raise ValueError("a condition in it")
        else:
            found = (0, 0)
        unbounded, choices = unbounded + found[0], choices + found[1]
    return unbounded, choices


def check_maps(content: str, where: Path) -> None:
    """Refuse a tokenizer.json with a map of characters that ends the process or makes thousands of one.

    Raises:
        BadInput: such a map, or no JSON.
    """
    if MAP not in content and not ESCAPED.search(content):
        return  # it has none, and need not be read twice
    for rule in _rules(parse_json(content, where)):
        if MAP not in rule:
            continue
        try:
            found = base64.b64decode(rule[MAP], validate=True)
        except (TypeError, ValueError):
            raise BadInput("a damaged map of characters", where=where) from None
        size = int.from_bytes(found[:4], "little")  # of the index; what characters become stands behind it
        if size > len(found) - 4 or max(map(len, found[4 + size :].split(b"\0"))) > 4 * GROWTH:
            raise BadInput("a damaged map of characters", where=where)


def check_rules(tokenizer: Any, where: Path) -> None:
    """Refuse a tokenizer whose rules could take time or memory without end. Raises BadInput."""
    growth = 1.0
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder):
        for rule in _rules(json.loads(part.__getstate__()) if part is not None else None):
            pattern = rule.get("pattern") or {}
            if "Regex" in pattern:
                check_pattern(pattern["Regex"], where, of_python=False)
            if rule.get("type") == "Replace":
                growth *= max(1.0, len(rule["content"]) / max(1, len(pattern.get("String", ""))))
            elif rule.get("type") == "Prepend":
                growth *= max(1, len(rule["prepend"]))
    if growth > GROWTH:
        raise BadInput("the tokenizer's rules would make a text many times longer", where=where)


def _rules(found: Any) -> Iterable[dict[str, Any]]:
    """All objects in a part's settings."""
    if isinstance(found, dict):
        yield found
        found = list(found.values())
    if isinstance(found, list):
        for inner in found:
            yield from _rules(inner)
