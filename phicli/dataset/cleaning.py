"""A clean copy of a file of rows: what can be restored is, what cannot be used is left out, and both are counted."""

import filecmp
import gzip
import io
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from phicli.artifacts.stages import publishing_file
from phicli.config.layers import expand
from phicli.dataset.contents import RowParser
from phicli.dataset.counting import SeenBefore
from phicli.dataset.defects import Defect
from phicli.dataset.formats import COMPRESSIONS, READERS, ending
from phicli.dataset.lines import Line, LineReader
from phicli.dataset.messages import turns_of
from phicli.dataset.rows import parse
from phicli.dataset.text_repair import has_mojibake, repair, row_findings, text_findings
from phicli.dataset.understood import Content, Understood, row_hash
from phicli.errors import BadInput, UsageError
from phicli.text import Conversation

# Findings about the file's form, which writing it anew does away with.
FORM = ("encoding", "bom", "crlf", "cr", "mixed_line_endings", "no_final_newline", "blank_line")
RESTORED = {"mojibake", "html_entity", "control_character"}
MENDED = {"invalid_utf8", "not_text"}  # of rows that cannot be used as they are
LOST = {"nan_text", "replacement_character"}


class Cleaned(NamedTuple):
    """Rows of a batch that can be used: the line to write, codes of what was changed, `row_hash`; and of the others,
    code of the finding -> rows left out for it."""

    rows: list[tuple[str, set[str], int]]
    dropped: Counter[str]


def restored(parser: RowParser, batch: Sequence[tuple[Line, dict[str, Any] | Defect]],
             check: Callable[[Content], object]) -> Cleaned:
    """What can be used of a batch of lines, each with its parsed object or why it cannot be.

    check: raises Defect for a row that was changed, and is not to be kept.
    """
    cleaned = Cleaned([], Counter())
    for line, parsed in batch:
        try:
            row, fields, changes = _restore(parser, line, parsed)
            if changes:
                check(row.content)
        except Defect as e:
            cleaned.dropped[e.code] += 1
            continue
        text = _json(fields) if changes else line.data.decode("utf-8")
        cleaned.rows.append((text, changes, row_hash(row)))
    return cleaned


def is_mended(parser: RowParser, line: Line, parsed: dict[str, Any] | Defect) -> bool:
    """Whether a row that cannot be used can be in the clean copy."""
    try:
        _restore(parser, line, parsed)
    except Defect:
        return False
    return True


class Cleaner:
    """Writes clean rows.

    Attributes:
        rows: rows written. rewritten: those of them in which a text was changed; of the others each byte is as it was.
        changed, dropped: code of the finding -> rows that were changed or left out for it.
    """

    def __init__(self, out: TextIO):
        self.out = out
        self.seen = SeenBefore()
        self.rows = self.rewritten = 0
        self.changed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def take(self, cleaned: Cleaned) -> None:
        """Write the rows of a batch that are no duplicates."""
        self.dropped.update(cleaned.dropped)
        repeated = self.seen.add(np.array([h for _, _, h in cleaned.rows], np.uint64))
        for (text, changes, _), again in zip(cleaned.rows, repeated, strict=True):
            if again:
                self.dropped["duplicate_row"] += 1
                continue
            self.out.write(text + "\n")
            self.rows += 1
            self.rewritten += bool(changes)
            self.changed.update(changes)

    def summary(self, output: Path) -> dict[str, Any]:
        return {"output": str(output), "rows": self.rows, "rewritten": self.rewritten,
                "changed": dict(sorted(self.changed.items())), "dropped": dict(sorted(self.dropped.items()))}


def _restore(parser: RowParser, line: Line,
             parsed: dict[str, Any] | Defect) -> tuple[Understood, dict[str, Any], set[str]]:
    """The row as it should be, its fields, and codes of what was changed. Raises Defect: of no use."""
    changes: set[str] = set()
    if isinstance(parsed, Defect):
        parsed = _as_windows_1252(line, parsed)
        changes.add("invalid_utf8")
    fields, changed = _numbers_as_text(parsed, parser)
    changes |= {"not_text"} if changed else set()
    row = parser.read(fields)
    codes = {code for _, code in row_findings(row.texts)}
    if codes & RESTORED:
        changes |= codes & RESTORED
        texts, mend = {text for _, text in row.texts}, partial(repair, entities="html_entity" in codes)
        fields = {name: _mended(value, texts, mend) if name in row.used else value for name, value in fields.items()}
        row = parser.read(fields)
    calls = isinstance(row.content, Conversation) and "tool_calls" in row.content.messages[-1]
    last = -1 if calls else len(row.texts) - 1  # the answer
    for at, (name, text) in enumerate(row.texts):
        for code in set(text_findings(text)) & (LOST if at != last else LOST | {"empty_field"}):
            raise Defect(code, "", name)
    return row, fields, changes


def _numbers_as_text(fields: dict[str, Any], reader: RowParser) -> tuple[dict[str, Any], bool]:
    """The fields, in which numbers are text where text is wanted, and whether there were such."""
    changed = False
    for _ in range(len(fields)):
        try:
            reader.read(fields)
            break
        except Defect as e:
            name = reader.columns.get(str(e.field), str(e.field))
            value = fields.get(name)
            if e.code != "not_text" or not isinstance(value, int | float) or isinstance(value, bool) or value != value:
                raise
            fields, changed = {**fields, name: str(value)}, True
    return fields, changed


def _mended(value: Any, texts: Set[str], mend: Callable[[str], str]) -> Any:
    """A field in which the texts of the row, wherever they stand, are mended; the parts of one each for itself."""
    if isinstance(value, str):
        if isinstance(turns := turns_of(value), list) and value not in texts:
            return json.dumps(_mended(turns, texts, mend), ensure_ascii=False)
        return mend(value) if value in texts else value
    if isinstance(value, dict):
        return {name: _mended(part, texts, mend) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    parts = [part.get("text") if isinstance(part, dict) else None for part in value]
    if all(isinstance(part, str) for part in parts) and "".join(map(str, parts)) in texts:
        return [{**part, "text": mend(part["text"])} for part in value]
    return [_mended(part, texts, mend) for part in value]


def _json(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a character, in a field that is not looked at
        return json.dumps(fields)
    return text


def _as_windows_1252(line: Line, defect: Defect) -> dict[str, Any]:
    """Read a line that is no UTF-8 as the encoding it most often is, unless that gives nonsense."""
    if defect.code != "invalid_utf8":
        raise defect
    try:
        text = line.data.decode("cp1252")
    except UnicodeDecodeError:
        raise defect from None
    if has_mojibake(text):  # some of it was UTF-8: a cut or mixed line
        raise defect
    return parse(text.encode("utf-8"))


def clean_name(path: Path) -> Path:
    """The name of a clean copy: rows.clean.jsonl in the folder of rows.csv.gz."""
    name = path.name if path.is_dir() else path.name.partition(".")[0]
    return path.with_name(f"{name or 'rows'}.clean.jsonl")


@contextmanager
def cleaning(output: Path, sources: Sequence[str | Path]) -> Iterator[Cleaner]:
    """A Cleaner whose file takes its place at `output` (gzip if it ends in .gz) when the block ends well.

    Raises:
        UsageError: `output` is a file that is read, "-", or has the name of another format.
        BadInput: no row was left; what is there is another file, a link, a folder or a device, and stays.
        Missing: it cannot be written.
    """
    output = Path(expand(str(output)))
    if str(output) == "-":
        raise UsageError("needs the name of a file to write", where=f"--fix {output}")
    other = READERS.get(ending(output), LineReader) is not LineReader
    if other or output.suffix.lower() in {*COMPRESSIONS, ".zip", ".xlsx"} - {".gz"}:
        raise UsageError("is the name of another format, and the clean copy is JSON Lines", where=f"--fix {output}",
                         hint=f"--fix {shlex.quote(str(clean_name(output)))}")
    if output.exists() and any(str(path) != "-" and Path(path).expanduser().samefile(output) for path in sources):
        raise UsageError("would write over its own input", where=f"--fix {output}", hint="name another file")
    with publishing_file(output) as fresh:
        with ExitStack() as files:
            raw = files.enter_context(fresh.open("wb"))
            packed = output.suffix == ".gz"
            binary = files.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)) if packed else raw
            cleaner = Cleaner(files.enter_context(io.TextIOWrapper(binary, "utf-8", newline="\n")))
            yield cleaner
        if not cleaner.rows:
            raise BadInput("no row is left to write", where=sources[0])
        if output.exists() and output.stat().st_size and not filecmp.cmp(fresh, output, shallow=False):
            raise BadInput("a file with other content is there, and stays", where=output,
                           hint="remove it, or name another file")
