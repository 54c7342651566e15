"""A look at a batch of rows: what it says and what may be wrong with it, as a summary that is small and can be merged.

Looks need nothing of each other, so that batches may be looked at in several processes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from phicli.dataset.cleaning import MENDED, Cleaned, is_mended, restored
from phicli.dataset.counting import Histogram
from phicli.dataset.defects import Defect
from phicli.dataset.encoding import RowEncoder, RowSettings, end_of_turn, row_parser
from phicli.dataset.figures import FieldFigures, Figures
from phicli.dataset.findings import SHOWN_LINES, Findings
from phicli.dataset.languages import A_BATCH, CHARACTERS
from phicli.dataset.lines import Line
from phicli.dataset.messages import TOOL
from phicli.dataset.near_duplicates import NO_LIMIT, Sketches, rank, sketches
from phicli.dataset.rows import parse_line
from phicli.dataset.suspicious import is_cut_off, suspicions
from phicli.dataset.text_repair import row_findings
from phicli.dataset.understood import Content, TemplatedRow, Understood, prompt_hash, row_hash
from phicli.errors import BadInput
from phicli.progress import SILENT, Progress
from phicli.text import Conversation, Encoded
from phicli.text.layout import SYSTEM, USER

MAX_FIELDS = 100  # names of further fields are counted together
OTHER_FIELDS = "(further fields)"
EXTREME_FROM = 1000  # characters
ANY_SPECIAL = r"<\|[A-Za-z0-9_]+\|>|\[/?INST\]|<<?/?SYS>>"  # of whatever model
Usable = Sequence[tuple[int, Understood]]


class Batch(NamedTuple):
    """Rows to look at.

    places: where each stands, see `inspector.Places`. faults: index -> why it is no row, as its container says.
    share: of the rows, whose tokens are counted. all_languages: all texts are wanted for `Languages`, and not a few.
    below: ranks of rows that may be compared for near duplicates. first: so many first rows are wanted as they are.
    """

    places: list[int]
    data: list[bytes]
    faults: dict[int, str]
    share: float = 1.0
    all_languages: bool = True
    below: int = NO_LIMIT
    first: int = 0


@dataclass
class Look:
    """What is seen of a batch. places, hashes, prompts: of each usable row, see `row_hash` and `prompt_hash`."""

    figures: Figures
    findings: Findings
    places: list[int]
    hashes: np.ndarray
    prompts: np.ndarray
    near: Sketches
    language_texts: list[str]
    language_places: list[int]
    first: list[tuple[int, Understood]]
    unmeasurable: int  # rows counted as usable that the chat template refuses
    cleaned: Cleaned | None


class Looker:
    """Looks at batches.

    Args:
        folder: of the model whose tokens are counted; None leaves them out. clean: rows are restored too, and the
            tokens of all of them counted, as those that the chat template refuses are to be left out.
    """

    def __init__(self, settings: RowSettings, folder: Path | None, max_tokens: int, clean: bool,
                 progress: Progress = SILENT):
        self.parser, self.max_tokens, self.clean = row_parser(settings), max_tokens, clean
        self.encoder = RowEncoder(folder, settings, progress=progress) if folder else None
        special = self.encoder.codec.special if self.encoder else {}
        self.special = re.compile("|".join([*map(re.escape, sorted(special, key=len, reverse=True)), ANY_SPECIAL]))
        end = end_of_turn(self.encoder) if self.encoder else None
        self.end = special[end][0] if end else None

    def __call__(self, batch: Batch) -> Look:
        figures, findings = Figures(), Findings()
        lines: list[tuple[Line, dict[str, Any] | Defect]] = []
        usable: list[tuple[int, Understood]] = []
        unused: set[str] = set()
        for at, (place, data) in enumerate(zip(batch.places, batch.data, strict=True)):
            line = Line(place, data, fault=batch.faults.get(at))
            parsed: dict[str, Any] | Defect | None = None
            try:
                parsed = parse_line(line)
                row = self.parser.read(parsed)
                usable.append((place, row))
                for name in parsed:
                    if name not in row.used:
                        findings.add("extra_field", place, _known(name, unused))
            except Defect as e:
                parsed = e if parsed is None else parsed
                findings.add(e.code, place, e.field, detail=e.message)
                figures.bad_rows += 1
                figures.mendable_rows += e.code in MENDED and is_mended(self.parser, line, parsed)
            if self.clean:
                lines.append((line, parsed))
        self._texts(usable, figures, findings)
        self._rows(usable, figures)
        refused = self._tokens(usable, 1.0 if self.clean else batch.share, figures, findings)
        lines = [(line, refused.get(line.number, parsed)) for line, parsed in lines]
        joined = ["\n".join(text for _, text in row.texts) for _, row in usable]
        places = [place for place, _ in usable]
        step = 1 if batch.all_languages else -(-len(joined) // A_BATCH) or 1
        return Look(
            figures, findings, places, _hashes(usable, row_hash), _hashes(usable, prompt_hash),
            sketches(joined, places, batch.below), [text[: 10 * CHARACTERS] for text in joined[::step]], places[::step],
            usable[: batch.first], len(refused), restored(self.parser, lines, self._encoded) if self.clean else None)

    def _texts(self, usable: Usable, figures: Figures, findings: Findings) -> None:
        """Look at each text."""
        texts = [(place, name, text) for place, row in usable for name, text in row.texts]
        for place, row in usable:
            for name, code in row_findings(row.texts):
                findings.add(code, place, name)
        lengths: dict[str, list[tuple[int, int]]] = {}
        for place, name, text in texts:
            lengths.setdefault(name, []).append((len(text), -place))
            if ("<" in text or "[" in text) and (match := self.special.search(text)):
                findings.add("special_token", place, name, detail=match[0])
        for name, found in lengths.items():
            figures.fields[name] = FieldFigures(
                len(found), findings[empty].count if (empty := ("empty_field", name)) in findings else 0,
                Histogram(length for length, _ in found),
                nlargest(SHOWN_LINES, (pair for pair in found if pair[0] > EXTREME_FROM)))
        seen = dict.fromkeys((code, *texts[at][:2]) for at, code in suspicions([text for _, _, text in texts]))
        for code, place, name in seen:
            findings.add(code, place, name)
        for place, row in usable:
            name, text = row.texts[-1] if row.texts else ("", "")
            if name not in (SYSTEM, USER, TOOL) and is_cut_off(text):
                findings.add("cut_off", place, name)

    def _rows(self, usable: Usable, figures: Figures) -> None:
        figures.formats.update(row.format for _, row in usable)
        figures.characters.add(sum(len(text) for _, text in row.texts) for _, row in usable)
        talks = [row.content for _, row in usable if isinstance(row.content, Conversation)]
        figures.turns.add(sum(talk.trained) for talk in talks)
        figures.roles.update(message["role"] for talk in talks for message in talk.messages)
        figures.with_tools = sum(bool(talk.tools) for talk in talks)

    def _encoded(self, content: Content) -> Encoded | None:
        """Ids of a row; None without a model. Raises Defect: not_laid_out, for which finetune refuses it."""
        try:
            return self.encoder.encode(content) if self.encoder else None
        except BadInput as e:
            raise Defect("not_laid_out", e.message) from None

    def _tokens(self, usable: Usable, share: float, figures: Figures, findings: Findings) -> dict[int, Defect]:
        """Count tokens in a share of the rows; returns where those stand that the chat template refuses, and why."""
        refused: dict[int, Defect] = {}
        if not self.encoder:
            return refused
        chosen = rank([place for place, _ in usable], seed=1) < share * 2.0**64
        tokens, trained = [], []
        for at in np.flatnonzero(chosen).tolist():
            place, row = usable[at]
            try:
                encoded = self._encoded(row.content)
                assert encoded
            except Defect as e:
                findings.add(e.code, place, detail=e.message)
                refused[place] = e
                continue
            tokens.append(len(encoded.ids))
            trained.append(len(encoded.targets))
            figures.measured_characters += sum(len(text) for _, text in row.texts)
            if len(encoded.ids) > self.max_tokens:
                findings.add("too_long", place, str(self.max_tokens))
            if isinstance(row.content, Conversation | TemplatedRow) and encoded.targets and (
                    encoded.ids[encoded.targets[-1]] != self.end):
                findings.add("no_end_of_turn", place)
        figures.tokens.add(tokens)
        figures.trained.add(trained)
        return refused


def _known(name: str, names: set[str]) -> str:
    """The name, if it is among the first MAX_FIELDS ones."""
    if len(names) < MAX_FIELDS:
        names.add(name)
    return name if name in names else OTHER_FIELDS


def _hashes(usable: Usable, hashed: Callable[[Understood], int]) -> np.ndarray:
    return np.array([hashed(row) for _, row in usable], np.uint64)
