"""Figures about rows and findings about them, from batches of lines; no row is kept."""

import heapq
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phicli.dataset.cleaning import row_hash
from phicli.dataset.counting import Histogram, SeenBefore
from phicli.dataset.findings import SHOWN_LINES, Findings
from phicli.dataset.lines import Line, LineReader
from phicli.dataset.rows import Defect, defects
from phicli.dataset.text_repair import text_findings
from phicli.dataset.tokens import TokenCounter
from phicli.text import TextCodec, TextTemplate

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
    tokens: Histogram = field(default_factory=Histogram)
    longest: list[tuple[int, int]] = field(default_factory=list)  # heap of (characters, -line)


class Inspector:
    """Takes batches of lines and keeps figures and findings, never rows."""

    def __init__(self, template: TextTemplate, codec: TextCodec | None, max_tokens: int, show: int):
        self.template, self.max_tokens, self.show = template, max_tokens, show
        self.names = list(dict.fromkeys(template.fields))
        self.counter = TokenCounter(codec, template) if codec else None
        known = sorted(codec.special, key=len, reverse=True) if codec else []
        self.special = re.compile("|".join([*map(re.escape, known), ANY_SPECIAL]))
        self.unknown_tokens = sorted({t for literal, _ in template.parts for t in re.findall(ANY_SPECIAL, literal)
                                      if codec and t not in codec.special})
        self.findings = Findings()
        self.fields: dict[str, FieldFigures] = {}
        self.characters, self.tokens = Histogram(), Histogram()
        self.seen_rows, self.seen_prompts = SeenBefore(), SeenBefore()
        self.endings: Counter[bytes] = Counter()
        self.ending_lines: dict[bytes, list[int]] = {}
        self.lines = self.rows = self.bad_rows = 0
        self.opens_array = False
        self.first: list[dict[str, Any]] = []

    def take(self, batch: Batch) -> None:
        usable: list[tuple[int, dict[str, str]]] = []
        for line, parsed in batch:
            if isinstance(parsed, Defect):
                self.findings.add(parsed.code, line.number, detail=parsed.message)
                self.bad_rows += 1
            elif self._fields(line.number, parsed):
                usable.append((line.number, parsed))
            else:
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

    def _fields(self, line: int, row: dict[str, Any]) -> bool:
        """Look at each field alone; can the row be used?"""
        found = list(defects(row, self.template))
        for defect in found:
            shown = defect.message if defect.code == "not_text" else None
            self.findings.add(defect.code, line, defect.field, detail=shown and f"line {line}: {shown}")
        for name, value in row.items():
            if name not in self.fields and len(self.fields) >= MAX_FIELDS:
                name = OTHER_FIELDS
            figures = self.fields.get(name) or self.fields.setdefault(name, FieldFigures())
            figures.rows += 1
            if name not in self.names:
                self.findings.add("extra_field", line, name)
            if isinstance(value, str):
                self._text(line, name, value, figures)
        return not found

    def _text(self, line: int, name: str, text: str, figures: FieldFigures) -> None:
        figures.characters.add([len(text)])
        if len(text) > EXTREME_FROM:
            push = heapq.heappush if len(figures.longest) < SHOWN_LINES else heapq.heappushpop
            push(figures.longest, (len(text), -line))
        figures.empty += not text or text.isspace()
        if name in self.names:
            for code in text_findings(text):
                self.findings.add(code, line, name)
            if ("<" in text or "[" in text) and (match := self.special.search(text)):
                self.findings.add("special_token", line, name, detail=match[0])

    def _rows(self, lines: Sequence[int], rows: Sequence[dict[str, str]]) -> None:
        """Look at whole rows that can be used."""
        self.rows += len(rows)
        for line, row in zip(lines[: self.show], rows, strict=False):
            if len(self.first) < self.show:
                self.first.append({"line": line, **{name: row[name] for name in self.names}})
        literal = sum(len(text) for text, _ in self.template.parts)
        self.characters.add(literal + sum(len(row[name]) for name in self.template.fields) for row in rows)
        again = self.seen_rows.add(np.array([row_hash(row, self.names) for row in rows], np.uint64))
        asked = self.seen_prompts.add(np.array([row_hash(row, self.names[:-1]) for row in rows], np.uint64))
        for at in np.flatnonzero(again).tolist():
            self.findings.add("duplicate_row", lines[at])
        if len(self.names) > 1:
            for at in np.flatnonzero(asked & ~again).tolist():
                self.findings.add("duplicate_prompt", lines[at])
        if self.counter:
            totals, per_field = self.counter.count(rows)
            self.tokens.add(totals)
            for name, counts in per_field.items():
                self.fields[name].tokens.add(counts)
            for at in np.flatnonzero(np.array(totals) > self.max_tokens).tolist():
                self.findings.add("too_long", lines[at], str(self.max_tokens))

    def finish(self, reader: LineReader) -> None:
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
        have = [name for name in self.fields if name not in self.names][:8]
        for finding in self.findings.values():
            if finding.code == "missing_field" and have:
                finding.suggestion = f"the rows have: {', '.join(have)}; name the right field in --text-template"
            if finding.code in ("bad_json", "not_object") and self.opens_array:
                finding.suggestion = "the file looks like one JSON array: jq -c '.[]' FILE > ROWS makes rows of it"
