"""Guesses of what a row goes on with: what came after the same tokens before, in its prompt or its answer.

Prompt-lookup decoding (Saxena, https://github.com/apoorvumang/prompt-lookup-decoding). A guess is compared with each
token that is drawn, whether it was run or not, so that how often guesses are right is known before any is run.
"""

from collections.abc import Sequence

import numpy as np

SHORTEST, LONGEST = 2, 8  # tokens that are the same before what is guessed from
WINDOW = 1 << 14  # last tokens that are looked through
EXPECTED = (0.0, 0.0, 0.3, 0.45, 0.55, 0.6, 0.65, 0.7, 0.8)  # `Lookup.right` of a new row
WEIGHT = 0.15  # of a guess among those before it


class Lookup:
    """One row's; `follow` gives it the row's tokens.

    right: how often a guess was right, by the number of tokens that were the same before it, LONGEST for more.
    """

    def __init__(self, most: int):
        self._tokens, self._count = np.empty(most + 1, np.int32), 0
        self._at = self._same = 0  # where the guess stands, and how many tokens before it are the same
        self.right = list(EXPECTED)

    def follow(self, tokens: Sequence[int]) -> None:
        """Take what is new of a row's tokens; guesses made before it are judged."""
        new = tokens[self._count :]
        self._tokens[self._count : len(tokens)] = new
        self._count = len(tokens)
        for token in new if self._same else ():
            self._judge(token)
        if new and not self._same:
            self._find()

    def chances(self, count: int) -> list[float]:
        """How likely the first, the first two, ... of so many guesses are right; none where there is no guess."""
        found, all_right = [], 1.0
        for same in range(self._same, self._same + count if self._same else 0):
            all_right *= self.right[min(same, LONGEST)]
            found.append(all_right)
        return found

    def guess(self, count: int) -> list[int]:
        """The next tokens; past the end of what is known, the guess itself goes on."""
        found: list[int] = []
        for at in range(self._at, self._at + count if self._same else 0):
            found.append(int(self._tokens[at]) if at < self._count else found[at - self._count])
        return found

    def _judge(self, token: int) -> None:
        if not self._same:
            return
        hit, known = int(self._tokens[self._at]) == token, min(self._same, LONGEST)
        self.right[known] += WEIGHT * (hit - self.right[known])
        self._at, self._same = (self._at + 1, self._same + 1) if hit else (0, 0)

    def _find(self) -> None:
        """Where the most tokens are the same as at the end, the last such place."""
        end, first = self._count, max(0, self._count - WINDOW)
        tokens = self._tokens[first:end]
        places, same = np.flatnonzero(tokens[:-1] == tokens[-1]) + 1, 1
        while same < LONGEST:
            longer = places[places > same]
            longer = longer[tokens[longer - same - 1] == tokens[len(tokens) - same - 1]]
            if not len(longer):
                break
            places, same = longer, same + 1
        if len(places) and same >= SHORTEST:
            self._at, self._same = first + int(places[-1]), same
