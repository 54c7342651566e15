"""Which language most rows are in, and which rows are in another."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from phicli.dataset.findings import SHOWN_LINES

FEWEST_BYTES, CHARACTERS = 60, 300  # of prose: a shorter text is not judged, and no more is looked at
SURE = 0.95  # probability from which a text's language is believed
FIRST, A_BATCH = 1000, 10  # the first rows are all looked at, then so many of a batch: 0.25 ms each
MOST = 0.5  # the main language is that of more than this share of the judged rows
# Varieties that are written almost as the language of a wider circle: Arabic, Chinese, English.
VARIETIES = {"ary", "arz", "wuu", "yue", "pcm"}
NO_LANGUAGE = "zxx"

_NO_PROSE = re.compile(r"^ *(```|~~~).*?(?:^ *\1|\Z)|`[^`\n]+`|https?://\S+|[!-&(-@[-`{-~]+", re.DOTALL | re.MULTILINE)


@cache  # half a second to unpack; asked for only when there is a text that is long enough
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(set(identifier.labels) - VARIETIES)
    return identifier


class Languages:
    """Counts the languages of rows; nothing but counts and the first lines of each language is kept.

    Attributes:
        looked_at: rows looked at. counts: language (ISO 639 code) -> those of them that clearly are in it.
    """

    def __init__(self) -> None:
        self.looked_at = 0
        self.counts: Counter[str] = Counter()
        self.lines: dict[str, list[int]] = {}

    def add(self, texts: Sequence[str], lines: Sequence[int]) -> None:
        """Look at some rows of a batch: what they say, and where they stand."""
        step = 1 if self.looked_at < FIRST else -(-len(texts) // A_BATCH) or 1
        self.looked_at += len(texts[::step])
        for text, line in zip(texts[::step], lines[::step], strict=True):
            if language := self._language(text):
                self.counts[language] += 1
                shown = self.lines.setdefault(language, [])
                if len(shown) < SHOWN_LINES:
                    shown.append(line)

    def _language(self, text: str) -> str | None:
        prose = _NO_PROSE.sub(" ", text[: 10 * CHARACTERS])
        prose = " ".join(prose.split())[:CHARACTERS]
        if len(prose.encode("utf-8", "replace")) < FEWEST_BYTES:
            return None
        language, probability = _identifier().classify(prose)
        return language if probability >= SURE and language != NO_LANGUAGE else None

    @property
    def main(self) -> str | None:
        """The language that most of the judged rows are in; None where none has more than half of them."""
        return next((language for language, n in self.counts.items() if n > MOST * self.counts.total()), None)

    def others(self) -> dict[str, tuple[int, list[int]]]:
        """Language -> (rows in it, lines of the first), the most frequent first; empty where there is no main one."""
        main = self.main
        return {language: (n, self.lines[language]) for language, n in self.counts.most_common()
                if main and language != main}
