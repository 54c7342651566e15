"""A clean copy of a file of rows: what can be restored is, what cannot be used is left out, and both are counted."""

import filecmp
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from phicli.artifacts.stages import publishing_file
from phicli.config.layers import expand
from phicli.dataset.counting import SeenBefore
from phicli.dataset.lines import Line
from phicli.dataset.rows import Defect, defects, parse
from phicli.dataset.text_repair import has_mojibake, repair, text_findings
from phicli.errors import BadInput, UsageError
from phicli.text import TextTemplate

# Findings about the file's form, which writing it anew does away with.
FORM = ("encoding", "bom", "crlf", "cr", "mixed_line_endings", "no_final_newline", "blank_line")
RESTORED = {"mojibake", "html_entity", "control_character"}
LOST = {"nan_text", "replacement_character"}


def row_hash(fields: Mapping[str, str], names: Sequence[str]) -> int:
    """64 bits of the row's fields without the blanks around them."""
    text = "\0".join(fields[name].strip() for name in names)
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


class Cleaner:
    """Writes clean rows.

    Attributes:
        rows: rows written. changed, dropped: code of the finding -> rows that were changed or left out for it.
    """

    def __init__(self, template: TextTemplate, out: TextIO):
        self.template, self.out = template, out
        self.names = list(dict.fromkeys(template.fields))
        self.seen = SeenBefore()
        self.rows = 0
        self.changed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def take(self, batch: Sequence[tuple[Line, dict[str, Any] | Defect]]) -> None:
        """Write what can be used of a batch of lines, each with its parsed object or why it is none."""
        kept = []
        for line, parsed in batch:
            try:
                fields, changes = self._restore(line, parsed)
            except Defect as e:
                self.dropped[e.code] += 1
                continue
            text = json.dumps(fields, ensure_ascii=False) if changes else line.data.strip().decode("utf-8")
            kept.append((text, changes, row_hash(fields, self.names)))
        repeated = self.seen.add(np.array([h for _, _, h in kept], np.uint64))
        for (text, changes, _), again in zip(kept, repeated, strict=True):
            if again:
                self.dropped["duplicate_row"] += 1
                continue
            self.out.write(text + "\n")
            self.rows += 1
            self.changed.update(changes)

    def _restore(self, line: Line, parsed: dict[str, Any] | Defect) -> tuple[dict[str, Any], set[str]]:
        """The row as it should be, and codes of what was changed. Raises Defect: it cannot be used."""
        changes: set[str] = set()
        if isinstance(parsed, Defect):
            parsed = _as_windows_1252(line, parsed)
            changes.add("invalid_utf8")
        fields = dict(parsed)
        for name in self.names:
            value = fields.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
                fields[name] = str(value)
                changes.add("not_text")
        for defect in defects(fields, self.template):
            raise defect
        for name in self.names:
            codes = set(text_findings(fields[name]))
            if codes & RESTORED:
                changes |= codes & RESTORED
                fields[name] = repair(fields[name])
                codes = set(text_findings(fields[name]))
            for code in codes & (LOST if name != self.names[-1] else LOST | {"empty_field"}):
                raise Defect(code, "", name)
        return fields, changes

    def summary(self, output: Path) -> dict[str, Any]:
        return {"output": str(output), "rows": self.rows,
                "changed": dict(sorted(self.changed.items())), "dropped": dict(sorted(self.dropped.items()))}


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


@contextmanager
def cleaning(output: Path, source: str, template: TextTemplate) -> Iterator[Cleaner]:
    """A Cleaner whose file takes its place at `output` (gzip if it ends in .gz) when the block ends well.

    Raises:
        UsageError: `output` is the file that is read, or "-".
        BadInput: no row was left; what is there is another file, a link, a folder or a device, and stays.
        Missing: it cannot be written.
    """
    output = Path(expand(str(output)))
    if str(output) == "-":
        raise UsageError("needs the name of a file to write", where=f"--fix {output}")
    if source != "-" and output.exists() and Path(source).expanduser().samefile(output):
        raise UsageError("would write over its own input", where=f"--fix {output}", hint="name another file")
    with publishing_file(output) as fresh:
        with ExitStack() as files:
            raw = files.enter_context(fresh.open("wb"))
            packed = output.suffix == ".gz"
            binary = files.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)) if packed else raw
            cleaner = Cleaner(template, files.enter_context(io.TextIOWrapper(binary, "utf-8", newline="\n")))
            yield cleaner
        if not cleaner.rows:
            raise BadInput("no row is left to write", where=source)
        if output.exists() and output.stat().st_size and not filecmp.cmp(fresh, output, shallow=False):
            raise BadInput("a file with other content is there, and stays", where=output,
                           hint="remove it, or name another file")
