"""Figures about rows and findings about them, put together from looks at batches; no row is kept."""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from phicli.dataset.counting import SeenBefore
from phicli.dataset.encoding import RowEncoder, layout_fault
from phicli.dataset.figures import Figures
from phicli.dataset.findings import SHOWN_LINES, Finding, Findings
from phicli.dataset.languages import FIRST, Languages
from phicli.dataset.lines import Container, Line
from phicli.dataset.looking import ANY_SPECIAL, EXTREME_FROM, MAX_FIELDS, OTHER_FIELDS, Batch, Look
from phicli.dataset.near_duplicates import NearDuplicates
from phicli.dataset.overlap import HeldOut, Overlap
from phicli.dataset.rows import NO_NAMES
from phicli.dataset.understood import Understood
from phicli.errors import BadInput

BATCH_LINES, BATCH_BYTES = 2000, 1 << 20
MEASURED = 20_000  # rows whose tokens are counted; of more rows a sample of about so many
EXTREME = 20  # times the median, and at least EXTREME_FROM
_FILE = 40  # bits of a line's number


class Places:
    """Numbers for rows of several files, in their order: the file's number, and below it that of the line or row."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.numbers_rows: list[bool] = []

    def begin(self, container: Container) -> int:
        """What is to be added to the numbers of lines of the next file."""
        self.names.append(container.name)
        self.numbers_rows.append(container.numbers_rows)
        return (len(self.names) - 1) << _FILE

    def name(self, place: int) -> int | str:
        """The number of a line where there is one file, else with the file's name."""
        file, number = place >> _FILE, place & ((1 << _FILE) - 1)
        if len(self.names) == 1:
            return number
        return f"{self.names[file]}, row {number}" if self.numbers_rows[file] else f"{self.names[file]}:{number}"


class Inspector:
    """Makes batches of lines, takes the looks at them in the same order, and keeps figures and findings, never rows.

    Args:
        show: so many first rows are kept. size: bytes of all files, if it is known.

    Attributes:
        rows: that can be used. lines, bytes: of all files that were read.
    """

    def __init__(self, show: int, size: int | None = None, held_out: HeldOut | None = None):
        self.show, self.size, self.held_out = show, size, held_out
        self.places, self.figures, self.findings = Places(), Figures(), Findings()
        self.seen_rows, self.seen_prompts = SeenBefore(), SeenBefore()
        self.near, self.languages = NearDuplicates(), Languages()
        self.unused: set[str] = set()
        self.file_rows: Counter[int] = Counter()  # by the number of the file
        self.unnamed: dict[int, str] = {}  # the number of a table -> see `Container.unnamed`
        self.first: list[tuple[int, Understood]] = []
        self.rows = self.lines = self.bytes = 0
        self._given = 0  # rows that were put into batches

    def batches(self, container: Container) -> Iterator[Batch]:
        """The rows of a file, without blank lines; its form is looked at meanwhile."""
        base, form, held = self.places.begin(container), _Form(), 0
        batch = Batch([], [], {})
        for line in container:
            if not form.see(line):
                continue
            if line.fault:
                batch.faults[len(batch.data)] = line.fault
            batch.places.append(base + line.number)
            batch.data.append(line.data)
            held += len(line.data)
            if len(batch.data) >= BATCH_LINES or held >= BATCH_BYTES:
                yield self._asked(batch, container)
                batch, held = Batch([], [], {}), 0
        if batch.data:
            yield self._asked(batch, container)
        if container.unnamed:
            self.unnamed[base >> _FILE] = container.unnamed
        self.lines += form.lines
        self.bytes += container.done
        form.finish(self.findings, container, base)

    def _asked(self, batch: Batch, container: Container) -> Batch:
        """The batch, with what is wanted of it."""
        before, self._given = self._given, self._given + len(batch.data)
        expected = self._given * max((self.size or 0) / max(self.bytes + container.done, 1), 1.0)
        return batch._replace(share=min(1.0, MEASURED / expected), all_languages=before < FIRST,
                              below=self.near.below, first=max(self.show, 1) - len(self.first))

    def take(self, look: Look) -> None:
        self.rows += (usable := len(look.places) - look.unmeasurable)
        if look.places:
            self.file_rows[look.places[0] >> _FILE] += usable
        self.figures.merge(look.figures)
        self.figures.bad_rows += look.unmeasurable
        for finding in look.findings.values():
            if finding.code == "extra_field":
                if len(self.unused) < MAX_FIELDS:
                    self.unused.add(str(finding.field))
                finding.field = finding.field if finding.field in self.unused else OTHER_FIELDS
            self.findings.merge(finding)
        self.first += look.first[: max(self.show, 1) - len(self.first)]
        again, asked = self.seen_rows.add(look.hashes), self.seen_prompts.add(look.prompts)
        for at in np.flatnonzero(again).tolist():
            self.findings.add("duplicate_row", look.places[at])
        for at in np.flatnonzero(asked & ~again).tolist():
            self.findings.add("duplicate_prompt", look.places[at])
        kept = ~again[np.searchsorted(look.places, look.near.places)]
        self.near.take(look.near, kept)
        self.languages.add(look.language_texts, look.language_places)
        if self.held_out:
            self.held_out.see(look.hashes)

    def finish(self, encoder: RowEncoder | None, held_out_name: str) -> Overlap | None:
        """Add the findings that only all rows show; returns how many held-out rows there are among them."""
        literal = "".join(text for text, _ in encoder.template.parts) if encoder and encoder.template else ""
        for token in sorted(set(re.findall(ANY_SPECIAL, literal))):
            if encoder and token not in encoder.codec.special:
                self.findings.merge(Finding("unknown_template_token", token, self.rows))
        if encoder and (fault := _layout_fault(encoder)):
            self.findings.merge(Finding("other_layout", None, self.rows, [], fault))
        self._unnamed()
        for name, figures in self.figures.fields.items():
            limit = max(EXTREME * figures.characters.quantile(0.5), EXTREME_FROM)
            if count := figures.characters.above(limit):
                places = sorted(-place for length, place in figures.longest if length > limit)
                self.findings.merge(Finding("extreme_length", name, count, places))
        self._alike()
        for language, (count, places) in self.languages.others().items():
            self.findings.merge(Finding("other_language", language, count, places, self._languages()))
        self.findings.mark_style(self.rows)
        overlap = self.held_out.overlap(self.near) if self.held_out else None
        if overlap and overlap.exact + overlap.near:
            self.findings.merge(Finding("held_out", held_out_name, overlap.exact + overlap.near, [],
                                        f"{overlap.exact} the same, {overlap.near} nearly the same"))
        return overlap

    def _unnamed(self) -> None:
        """Say of a table without rows in a known format that its first line is one."""
        command = next((command for file, command in self.unnamed.items() if not self.file_rows[file]), None)
        if command and (finding := self.findings.get(("unknown_format", None))):
            finding.detail = f"{finding.detail}; {NO_NAMES}: {command}"

    def _alike(self) -> None:
        distinct = self.rows - self.findings.count("duplicate_row")
        sample = f", of {self.near.compared:,} rows compared" if self.near.compared < distinct else ""
        for place, earlier in self.near.pairs():
            same = f"such as {self._called(place)} and {self._called(earlier)}{sample}"
            self.findings.add("near_duplicate", place, detail=same)

    def _languages(self) -> str:
        looked_at = self.languages.looked_at
        sample = f", of {looked_at:,} rows looked at" if looked_at < self.rows else ""
        return f"most are in {self.languages.main}{sample}"

    def _called(self, place: int) -> str:
        name = self.places.name(place)
        return name if isinstance(name, str) else f"row {name}" if self.places.numbers_rows[0] else f"line {name}"


def _layout_fault(encoder: RowEncoder) -> str | None:
    try:
        return layout_fault(encoder)
    except BadInput as e:
        return e.message


class _Form:
    """How the lines of a file are written."""

    def __init__(self) -> None:
        self.lines = 0
        self.last = b"\n"
        self.blank = 0
        self.blank_lines: list[int] = []
        self.endings: Counter[bytes] = Counter()
        self.ending_lines: dict[bytes, list[int]] = {}

    def see(self, line: Line) -> bool:
        """Note a line's form; is there anything on it?"""
        self.lines, self.last = line.number, line.ending
        self.endings[line.ending] += 1
        if self.endings[line.ending] <= SHOWN_LINES:
            self.ending_lines.setdefault(line.ending, []).append(line.number)
        if line.data and not line.data.isspace():
            return True
        self.blank += 1
        if self.blank <= SHOWN_LINES:
            self.blank_lines.append(line.number)
        return False

    def finish(self, findings: Findings, container: Container, base: int) -> None:
        if container.encoding != "utf-8":
            findings.merge(Finding("encoding", container.encoding.upper(), self.lines))
        elif container.bom:
            findings.add("bom", base + 1)
        if not container.textual:
            return
        if self.blank:
            findings.merge(Finding("blank_line", None, self.blank, [base + number for number in self.blank_lines]))
        if not self.last:
            findings.add("no_final_newline", base + self.lines)
            del self.endings[self.last]
        usual = max(self.endings, key=lambda ending: self.endings[ending], default=b"\n")
        for ending, count in self.endings.items():
            if ending != usual or (len(self.endings) == 1 and ending != b"\n"):
                code = "mixed_line_endings" if ending != usual else "crlf" if ending == b"\r\n" else "cr"
                findings.merge(Finding(code, None, count, [base + number for number in self.ending_lines[ending]]))
