"""What ends an answer but the model: texts to stop at, and a model that says the same again and again."""

import re
from collections.abc import Sequence

SHORTEST, LONGEST = 8, 256  # tokens of what has to come three times running


class StopText:
    """Streamed text up to the first stop text. What may be the beginning of one is held back until it is told.

    given: all text that was let through. found: the stop text that came; nothing is let through from then on.
    """

    def __init__(self, stops: Sequence[str]):
        self._whole = re.compile("|".join(map(re.escape, stops)) or "(?!)")
        self._beginnings = {stop[:n] for stop in stops for n in range(1, len(stop))}
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""
        self.given, self.found = "", ""

    def step(self, piece: str) -> str:
        """What may be shown now that `piece` came."""
        text = self._held + piece
        if match := self._whole.search(text):
            self.found, self._held = match[0], ""
            shown = text[: match.start()]
        else:
            lengths = range(min(self._longest, len(text)), 0, -1)
            held = next((n for n in lengths if text[-n:] in self._beginnings), 0)
            shown, self._held = text[: len(text) - held], text[len(text) - held :]
        self.given += shown
        return shown


def repeated(tokens: Sequence[int]) -> Sequence[int]:
    """The tokens that these end in three times running, at least 8 and at most 256; none if they do not."""
    for n in range(SHORTEST, min(LONGEST, len(tokens) // 3) + 1):
        if tokens[-1] == tokens[-1 - n] and tokens[-n:] == tokens[-2 * n : -n] == tokens[-3 * n : -2 * n]:
            return tokens[-n:]
    return ()


def is_prose(block: str, before: str) -> bool:
    """Whether a text does not repeat itself rightly, as figures, rulers, rows of tables and code between fences may."""
    return any(map(str.isalpha, block)) and "|" not in block and before.count("```") % 2 == 0
