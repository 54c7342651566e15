"""What is counted of rows, of one batch or of all."""

from collections import Counter
from dataclasses import dataclass, field
from heapq import nlargest

from phicli.dataset.counting import Histogram
from phicli.dataset.findings import SHOWN_LINES


@dataclass
class FieldFigures:
    """A field over all rows that have it as text. longest: (characters, -place), the most first."""

    rows: int = 0
    empty: int = 0
    characters: Histogram = field(default_factory=Histogram)
    longest: list[tuple[int, int]] = field(default_factory=list)

    def merge(self, other: "FieldFigures") -> None:
        self.rows += other.rows
        self.empty += other.empty
        self.characters.counts.update(other.characters.counts)
        self.longest = nlargest(SHOWN_LINES, self.longest + other.longest)


@dataclass
class Figures:
    """What is counted of rows; of two batches it is added up.

    mendable_rows: bad ones that the clean copy can have. roles: messages of each role. turns: of a conversation,
    answers that are learnt. measured_characters: of rows whose tokens are counted.
    """

    bad_rows: int = 0
    mendable_rows: int = 0
    with_tools: int = 0
    measured_characters: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    fields: dict[str, FieldFigures] = field(default_factory=dict)
    characters: Histogram = field(default_factory=Histogram)
    turns: Histogram = field(default_factory=Histogram)
    tokens: Histogram = field(default_factory=Histogram)
    trained: Histogram = field(default_factory=Histogram)

    def merge(self, other: "Figures") -> None:
        self.bad_rows += other.bad_rows
        self.mendable_rows += other.mendable_rows
        self.with_tools += other.with_tools
        self.measured_characters += other.measured_characters
        self.formats.update(other.formats)
        self.roles.update(other.roles)
        for name, figures in other.fields.items():
            self.fields.setdefault(name, FieldFigures()).merge(figures)
        for mine, its in ((self.characters, other.characters), (self.turns, other.turns), (self.tokens, other.tokens),
                          (self.trained, other.trained)):
            mine.counts.update(its.counts)
