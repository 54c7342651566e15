"""Figures about rows and findings about them, from batches of lines; no row is kept."""

import heapq
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phicli.dataset.contents import RowParser, Understood, joined, prompt_hash, row_hash
from phicli.dataset.counting import Histogram, SeenBefore
from phicli.dataset.defects import Defect
from phicli.dataset.encoding import RowEncoder
from phicli.dataset.findings import SHOWN_LINES, Findings
from phicli.dataset.lines import Container, Line
from phicli.dataset.text_repair import text_findings
from phicli.errors import BadInput
from phicli.text import Conversation, Encoded

MAX_FIELDS = 100  # names of further fields are counted together
OTHER_FIELDS = "(further fields)"
EXTREME, EXTREME_FROM = 20, 1000  # times the median, and at least so many characters
ANY_SPECIAL = r"<\|[A-Za-z0-9_]+\|>|\[/?INST\]|<<?/?SYS>>"  # of whatever model

Batch = list[tuple[Line, dict[str, Any] | Defect]]


@dataclass
class FieldFigures:
    """A field over all rows that have it as text."""

    rows: int = 0
    empty: int = 0
    characters: Histogram = field(default_factory=Histogram)
    longest: list[tuple[int, int]] = field(default_factory=list)  # heap of (characters, -line)


class Inspector:
    """Takes batches of lines and keeps figures and findings, never rows.

    encoder: counts tokens; None leaves them out.
    """

    def __init__(self, reader: RowParser, encoder: RowEncoder | None, max_tokens: int, show: int):
        self.reader, self.encoder, self.max_tokens, self.show = reader, encoder, max_tokens, show
        special = encoder.codec.special if encoder else {}
        self.special = re.compile("|".join([*map(re.escape, sorted(special, key=len, reverse=True)), ANY_SPECIAL]))
        literal = "".join(text for text, _ in reader.template.parts) if reader.template else ""
        self.unknown_tokens = sorted({t for t in re.findall(ANY_SPECIAL, literal) if encoder and t not in special})
        self.findings = Findings()
        self.fields: dict[str, FieldFigures] = {}
        self.unused: set[str] = set()
        self.formats: Counter[str] = Counter()
        self.characters, self.tokens, self.trained, self.turns = Histogram(), Histogram(), Histogram(), Histogram()
        self.seen_rows, self.seen_prompts = SeenBefore(), SeenBefore()
        self.endings: Counter[bytes] = Counter()
        self.ending_lines: dict[bytes, list[int]] = {}
        self.lines = self.rows = self.bad_rows = self.with_tools = 0
        self.opens_array = False
        self.first: list[dict[str, Any]] = []
        self.example: Encoded | None = None

    def take(self, batch: Batch) -> None:
        usable: list[tuple[int, Understood]] = []
        for line, parsed in batch:
            try:
                if isinstance(parsed, Defect):
                    raise parsed
                usable.append((line.number, self._read(line.number, parsed)))
            except Defect as e:
                self.findings.add(e.code, line.number, e.field, detail=e.message)
                self.bad_rows += 1
        if usable:
            self._rows([number for number, _ in usable], [row for _, row in usable])

    def see(self, line: Line) -> bool:
        """Note a line's form; is there anything on it?"""
        self.lines = line.number
        if line.number == 1:
            self.opens_array = line.data.lstrip().startswith(b"[")
        if line.ending:
            self.endings[line.ending] += 1
            if self.endings[line.ending] <= SHOWN_LINES:
                self.ending_lines.setdefault(line.ending, []).append(line.number)
        else:
            self.findings.add("no_final_newline", line.number)
        if line.data and not line.data.isspace():
            return True
        self.findings.add("blank_line", line.number)
        return False

    def _read(self, line: int, fields: dict[str, Any]) -> Understood:
        """What a row says, after a look at each of its texts. Raises Defect: it cannot be used."""
        row = self.reader.read(fields)
        for name in fields:
            if name not in row.used:
                self.unused.add(name) if len(self.unused) < MAX_FIELDS else None
                self.findings.add("extra_field", line, name if name in self.unused else OTHER_FIELDS)
        for name, text in row.texts:
            figures = self.fields.get(name) or self.fields.setdefault(name, FieldFigures())
            figures.rows += 1
            self._text(line, name, text, figures)
        return row

    def _text(self, line: int, name: str, text: str, figures: FieldFigures) -> None:
        figures.characters.add([len(text)])
        if len(text) > EXTREME_FROM:
            push = heapq.heappush if len(figures.longest) < SHOWN_LINES else heapq.heappushpop
            push(figures.longest, (len(text), -line))
        figures.empty += not text or text.isspace()
        for code in text_findings(text):
            self.findings.add(code, line, name)
        if ("<" in text or "[" in text) and (match := self.special.search(text)):
            self.findings.add("special_token", line, name, detail=match[0])

    def _rows(self, lines: Sequence[int], rows: Sequence[Understood]) -> None:
        """Look at whole rows that can be used."""
        self.rows += len(rows)
        for line, row in zip(lines, rows, strict=True):
            self.formats[row.format] += 1
            if len(self.first) < self.show:
                self.first.append({"line": line, **joined(row.texts)})
            if isinstance(row.content, Conversation):
                self.turns.add([sum(row.content.trained)])
                self.with_tools += bool(row.content.tools)
        self.characters.add(sum(len(text) for _, text in row.texts) for row in rows)
        again = self.seen_rows.add(np.array([row_hash(row) for row in rows], np.uint64))
        asked = self.seen_prompts.add(np.array([prompt_hash(row) for row in rows], np.uint64))
        for at in np.flatnonzero(again).tolist():
            self.findings.add("duplicate_row", lines[at])
        for at in np.flatnonzero(asked & ~again).tolist():
            self.findings.add("duplicate_prompt", lines[at])
        if self.encoder:
            for line, row in zip(lines, rows, strict=True):
                self._tokens(line, row, self.encoder)

    def _tokens(self, line: int, row: Understood, encoder: RowEncoder) -> None:
        try:
            encoded = encoder.encode(row.content)
        except BadInput as e:
            self.findings.add("not_laid_out", line, detail=e.message)
            self.rows, self.bad_rows = self.rows - 1, self.bad_rows + 1
            return
        self.example = self.example or encoded
        self.tokens.add([len(encoded.ids)])
        self.trained.add([len(encoded.targets)])
        if len(encoded.ids) > self.max_tokens:
            self.findings.add("too_long", line, str(self.max_tokens))

    def finish(self, reader: Container) -> None:
        """Add the findings that only the whole file shows."""
        add = self.findings.add
        if reader.encoding != "utf-8":
            add("encoding", None, reader.encoding.upper(), count=self.lines)
        elif reader.bom:
            add("bom", 1)
        usual = self.endings.most_common(1)[0][0] if self.endings else b"\n"
        for ending, count in self.endings.items():
            if ending != usual or (len(self.endings) == 1 and ending != b"\n"):
                code = "mixed_line_endings" if ending != usual else "crlf" if ending == b"\r\n" else "cr"
                add(code, None, count=count)
                kept = self.findings[code, None]
                kept.lines = sorted([*kept.lines, *self.ending_lines[ending]])[:SHOWN_LINES]
        for token in self.unknown_tokens:
            add("unknown_template_token", None, token, count=self.rows)
        for name, figures in self.fields.items():
            limit = max(EXTREME * figures.characters.quantile(0.5), EXTREME_FROM)
            for line in sorted(-line for length, line in figures.longest if length > limit):
                add("extreme_length", line, name, count=0)
            if ("extreme_length", name) in self.findings:
                self.findings["extreme_length", name].count = figures.characters.above(limit)
        self._suggest()

    def _suggest(self) -> None:
        """Advice that knows the file."""
        for finding in self.findings.values():
            if finding.code in ("bad_json", "not_object") and self.opens_array:
                finding.suggestion = "the file looks like one JSON array: jq -c '.[]' FILE > ROWS makes rows of it"
