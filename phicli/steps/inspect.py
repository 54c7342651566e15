"""One pass over a file of rows: figures about its fields and tokens, and everything that may be wrong with it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from phicli.config.steps import InspectConfig
from phicli.dataset.cleaning import FORM, Cleaner, cleaning
from phicli.dataset.defects import Defect
from phicli.dataset.encoding import RowEncoder, row_parser
from phicli.dataset.formats import open_rows
from phicli.dataset.inspector import Batch, Inspector
from phicli.dataset.lines import Container
from phicli.dataset.rows import parse
from phicli.errors import BadInput
from phicli.hub.models import local_tokenizer
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress

BATCH_LINES, BATCH_BYTES = 2000, 1 << 20


@subdued()
def inspect_file(config: InspectConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Inspect a file of rows, or stdin as "-", in one pass and bounded memory.

    The model's tokenizer counts; it is never fetched, and without it the report has no tokens.

    Returns:
        The report, ready for JSON: file, bytes, lines, rows (that can be used), bad_rows, fields, characters and tokens
        (of the templated row), duplicate_rows, duplicate_prompts, first_rows, warnings, fix.

    Raises:
        BadInput: the file cannot be read as lines of text, see `Container`; it is empty; no row is left for `fix`; the
            template or the model is wrong.
        UsageError: `fix` is the input. Missing: `fix` cannot be written.
    """
    reader_of_rows, fix = row_parser(config), Path(config.fix) if config.fix else None
    inspector = Inspector(reader_of_rows, _encoder(config, progress), config.max_tokens, config.rows)
    with open_rows(config.data[0]) as reader, ExitStack() as stack:
        cleaner = stack.enter_context(cleaning(fix, config.data[0], reader_of_rows)) if fix else None
        with progress.task(f"reading {reader.name}", reader.size, "B") as task:
            done = 0
            for batch in _batches(reader, inspector):
                inspector.take(batch)
                if cleaner:
                    cleaner.take(batch)
                task.advance(reader.done - done, rows=inspector.rows)
                done = reader.done
        if not inspector.rows + inspector.bad_rows:
            raise BadInput("no rows: the file is empty", where=reader.name)
        inspector.finish(reader)
    return _report(inspector, reader, cleaner, fix)


def _encoder(config: InspectConfig, progress: Progress) -> RowEncoder | None:
    folder = local_tokenizer(config.model)
    if folder:
        return RowEncoder(folder, config, progress=progress)
    progress.note(f"tokens are left out: {config.model} is not on this machine, and looking at data fetches nothing. "
                  "To count them: --model tiny (built in), --model FOLDER, or after phicli quantize has fetched it")
    return None


def _batches(reader: Container, inspector: Inspector) -> Iterator[Batch]:
    batch: Batch = []
    held = 0
    for line in reader:
        if not inspector.see(line):
            continue
        try:
            batch.append((line, parse(line.data)))
        except Defect as e:
            batch.append((line, e))
        held += len(line.data)
        if len(batch) >= BATCH_LINES or held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _report(inspector: Inspector, reader: Container, cleaner: Cleaner | None, fix: Path | None) -> dict[str, Any]:
    findings = inspector.findings
    tokens = inspector.tokens.figures()
    if tokens:
        tokens |= {"total": inspector.tokens.total, "trained": inspector.trained.total, "limit": inspector.max_tokens,
                   "over_limit": findings.count("too_long")}
    report: dict[str, Any] = {
        "file": reader.name, "bytes": reader.done, "lines": inspector.lines,
        "rows": inspector.rows, "bad_rows": inspector.bad_rows, "formats": dict(inspector.formats),
        "turns": inspector.turns.figures(), "rows_with_tools": inspector.with_tools,
        "fields": {name: {"rows": f.rows, "empty": f.empty, "characters": f.characters.figures()}
                   for name, f in inspector.fields.items()},
        "characters": inspector.characters.figures(), "tokens": tokens,
        "duplicate_rows": findings.count("duplicate_row"), "duplicate_prompts": findings.count("duplicate_prompt"),
        "first_rows": inspector.first, "warnings": findings.warnings(),
    }
    if cleaner and fix:
        cleaner.changed.update({code: findings.count(code) for code in FORM if findings.count(code)})
        report["fix"] = cleaner.summary(fix)
    return report
