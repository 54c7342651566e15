"""One pass over files of rows: what they say, figures about fields and tokens, and everything that may be wrong."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from phicli.config.steps import InspectConfig
from phicli.dataset.cleaning import cleaning
from phicli.dataset.defects import Defect
from phicli.dataset.encoding import row_parser
from phicli.dataset.formats import open_rows
from phicli.dataset.inspector import Inspector
from phicli.dataset.looking import Batch, Looker
from phicli.dataset.near_duplicates import MAX_ROWS
from phicli.dataset.overlap import HeldOut
from phicli.dataset.readers.table import TableReader
from phicli.dataset.rows import parse_line
from phicli.dataset.sources import Source
from phicli.dataset.understood import Understood
from phicli.errors import BadInput, Missing, PhicliError
from phicli.hardware.devices import usable_cores
from phicli.hardware.processes import spread
from phicli.hub.datasets import find_sources, held_out_sources
from phicli.hub.models import local_tokenizer
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress, Task
from phicli.steps.inspected import FileRead, report

ALONE = 4  # batches that are looked at before other processes are started: fewer take less time than their start


@subdued()
def inspect_file(config: InspectConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Inspect files of rows, or stdin as "-", in one pass and bounded memory.

    The model's tokenizer counts; it is never fetched, and without it the report has no tokens. Nor are data fetched.

    Returns:
        The report, ready for JSON; docs/inspect.md tells what is in it.

    Raises:
        BadInput: a file cannot be read as rows, see `Container`; there are no rows; no row is left for `fix`; the
            template or the model is wrong.
        UsageError: `fix` is one of the files; as `find_sources`. Missing: `fix` cannot be written; data are not here.
    """
    sources = inspected_sources(config, progress)
    paths = [source.path for source in sources]
    folder, fix = local_tokenizer(config.model, progress), Path(config.fix) if config.fix else None
    look_at = partial(Looker, config, folder, config.max_tokens, bool(fix))
    looker = look_at(progress)
    if not folder:
        progress.note(f"tokens are left out: {config.model} is not on this machine, and looking at data fetches "
                      "nothing. To count them: --model tiny (built in), --model FOLDER, or after phicli quantize has "
                      "fetched it")
    size = _size(paths)
    inspector = Inspector(config.rows, size, _held_out(config, paths, progress))
    files: list[FileRead] = []
    with ExitStack() as stack:
        cleaner = stack.enter_context(cleaning(fix, paths)) if fix else None
        task = stack.enter_context(progress.task(f"reading {_named(paths)}", size, "B"))
        batches = _batches(paths, inspector, files, task)
        for look in stack.enter_context(closing(spread(looker, look_at, batches, usable_cores(), ALONE))):
            inspector.take(look)
            if cleaner and look.cleaned:
                cleaner.take(look.cleaned)
        if not inspector.rows + inspector.figures.bad_rows:
            missing, hint = _missing(files, inspector.lines)
            raise BadInput(f"no rows: {missing}", where=_named(paths), hint=hint)
    overlap = inspector.finish(looker.encoder, config.eval_data)
    return report(config, sources, files, inspector, overlap, looker.encoder, cleaner)


def inspected_sources(config: InspectConfig, progress: Progress = SILENT) -> list[Source]:
    """The files that are looked at. Raises as `find_sources`, which fetches nothing here."""
    try:
        return find_sources(config.data, progress=progress, local=True)
    except Missing as e:
        raise Missing(e.message, where=e.where, hint=f"hf download --repo-type dataset {e.where}") from None


def _batches(paths: Sequence[str | Path], inspector: Inspector, files: list[FileRead], task: Task) -> Iterator[Batch]:
    for path in paths:
        with open_rows(path) as container:
            done = 0
            for batch in inspector.batches(container):
                yield batch
                task.advance(container.done - done, rows=inspector.rows)
                done = container.done
            task.advance(container.done - done, rows=inspector.rows)
            files.append(FileRead(container.name, container.kind, container.encoding, container.done))


def _held_out(config: InspectConfig, paths: Sequence[str | Path], progress: Progress) -> HeldOut | None:
    """The held-out rows of the setting, where they are there; MAX_ROWS of them at most. The lab's own, which nobody has
    named, only where they are other files."""
    try:
        found = [source.path for source in held_out_sources(config.eval_data, local=True) if source.path != "-"]
        ours = {Path(path).resolve() for path in paths if path != "-"}
        same = [path for path in found if Path(path).resolve() in ours]
        if config.eval_data == InspectConfig.eval_data:
            found = [path for path in found if path not in same]
        elif same:
            progress.warn(f"{config.eval_data}: the file that is inspected is the one of held-out rows too")
        return HeldOut(_understood(found, config)) if found else None
    except PhicliError as e:
        if config.eval_data != InspectConfig.eval_data:
            progress.warn(f"held-out rows are not compared: {e}")
        return None


def _understood(paths: Sequence[str | Path], config: InspectConfig) -> Iterator[Sequence[Understood]]:
    """Rows that can be used, in batches."""
    parser = row_parser(config)

    def rows() -> Iterator[Understood]:
        for path in paths:
            with open_rows(path) as container:
                for line in container:
                    if line.data.strip():
                        try:
                            yield parser.read(parse_line(line))
                        except Defect:
                            continue

    found = islice(rows(), MAX_ROWS)
    while batch := list(islice(found, 1000)):
        yield batch


def _missing(files: Sequence[FileRead], lines: int) -> tuple[str, str]:
    """What files without rows lack, and what helps."""
    row = 'a row is a line such as {"prompt": "…", "response": "…"}'
    if len(files) > 1 or not files[0].bytes:
        return "the file is empty" if len(files) == 1 else "there is none in any of the files", row
    if files[0].container == TableReader.kind:
        return "only the line that names the columns", "each row is a line under it"
    return ("nothing but blank lines", row) if lines else (f"it is {files[0].container} with nothing in it", row)


def _size(paths: Sequence[str | Path]) -> int | None:
    """Bytes of all files; None where one is not a file."""
    plain = [Path(path).expanduser() for path in paths]
    return sum(path.stat().st_size for path in plain) if all(path.is_file() for path in plain) else None


def _named(paths: Sequence[str | Path]) -> str:
    first = "stdin" if str(paths[0]) == "-" else str(paths[0])
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
