"""All that a person sees: results on stdout, everything else on stderr. What needs rich is imported when it is used."""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phicli.artifacts.logs import log_file
from phicli.cli import process
from phicli.cli.diverted import diverted
from phicli.cli.manner import manner
from phicli.errors import BadInput, PhicliError
from phicli.printable import printable, printable_json
from phicli.units import ago as ago
from phicli.units import duration as duration
from phicli.units import number as number
from phicli.units import size as size

if TYPE_CHECKING:
    from phicli.cli.reporter import Reporter


def result(text: str) -> None:
    """One line of result on stdout, never wrapped or coloured; as it is, unless a terminal would interpret it."""
    sys.stdout.write((printable(text) if sys.stdout.isatty() else text) + "\n")
    sys.stdout.flush()


def result_json(document: Any) -> None:
    """One JSON document on stdout; figures that JSON does not know are null."""
    from phicli.cli.messages import finite

    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(finite(document), indent=2, ensure_ascii=not unicode, allow_nan=False, default=str)
    result(printable_json(text))


def result_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout, or cards where the terminal is narrow."""
    from phicli.cli import tables

    tables.result_table(columns, rows, title)


def result_list(rows: Iterable[tuple[str, str]], title: str | None = None) -> None:
    """Names, each with a text of one or more lines beside it, on stdout; lines end between words."""
    from phicli.cli import tables

    tables.result_list(rows, title)


def result_marked(pieces: Iterable[tuple[str, bool]], title: str) -> None:
    """A text on stdout of which parts are marked: by colour and underlining, else by ⟦ and ⟧."""
    from phicli.cli import tables

    tables.result_marked(pieces, title)


def result_lights(rows: Iterable[tuple[str, str, str, str | None]]) -> None:
    """Rows of (green, yellow or red; name; what was found; what cures it) on stdout: a table, or lines."""
    from phicli.cli import tables

    tables.result_lights(rows)


def note(text: str) -> None:
    """One line on stderr that a person may want to know."""
    from phicli.cli import messages

    messages.note(text)


def warn(text: str) -> None:
    """One line on stderr that a person should know."""
    from phicli.cli import messages

    messages.warn(text)


def following(command: str, where: str | None = None) -> None:
    """A command that comes next, on stderr, on one line that can be pasted; where: on which other machine."""
    from phicli.cli import messages

    messages.following(command, where)


def failure(error: PhicliError) -> None:
    """What went wrong, where, and what helps."""
    from phicli.cli import messages

    messages.failure(error)


def typed(text: str) -> str:
    """A text from the command line as UTF-8; where the locale is plain C, Python hands over its bytes one by one.

    Raises:
        BadInput: no UTF-8.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as e:
        raise BadInput(f"not UTF-8: {e}", where="the command line") from None


def can_ask() -> bool:
    """Whether there is a person at the terminal."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stderr.isatty())


def ask(question: str) -> str | None:
    """The answer that a person types, or None where nobody can be asked."""
    if not can_ask():
        return None
    from phicli.cli.messages import stderr, strange

    return stderr().input(strange(f"{question}: ")).strip() or None


@contextlib.contextmanager
def task_log(command: str, root: str | Path) -> Iterator["Reporter"]:
    """Long work: yields the Progress for library code, and sends all other output of libraries to a log file.

    An exception that passes through gets the log's path as its attribute `log`, if anything was logged. Where Ctrl-C
    or a signal ends the work, what is kept of it is said.
    """
    from phicli.cli.reporter import Reporter

    stopped_at = ""
    with log_file(command, Path(root)) as (log_path, log):
        try:
            with diverted(sys.stderr if manner().verbose else log) as terminal, Reporter(terminal) as reporter:
                try:
                    yield reporter
                finally:
                    stopped_at = reporter.stopped_at
        except BaseException as e:
            with contextlib.suppress(OSError):
                log.flush()
            if os.fstat(log.fileno()).st_size:
                e.log = log_path  # type: ignore[attr-defined]
            if isinstance(e, KeyboardInterrupt) or process.signalled():
                _tell_kept(stopped_at, getattr(e, "__notes__", []))
            raise


def _tell_kept(where: str, kept: list[str]) -> None:
    """kept: what library code has noted on the exception."""
    text = "; ".join(kept) or "of this step nothing is kept, and what was there before is as it was"
    note(f"stopped{f' at {where}' if where else ''}: {text}")
