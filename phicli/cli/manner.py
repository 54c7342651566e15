"""How much a command says, and in which form: -q, -v and --progress, before or after the command's name."""

from contextvars import ContextVar
from dataclasses import dataclass, replace

from phicli.errors import UsageError

FORMS = ("auto", "lines", "json")


@dataclass(frozen=True)
class Manner:
    """quiet: only results, warnings and errors. verbose: what libraries print too. progress: one of FORMS; auto is
    bars at a terminal, else lines."""

    quiet: bool = False
    verbose: bool = False
    progress: str = "auto"


_current: ContextVar[Manner] = ContextVar("manner", default=Manner())  # noqa: B039 (never changed)


def manner() -> Manner:
    """That of the command line that runs."""
    return _current.get()


def usual_manner() -> None:
    """Forget what an earlier command line of this process wanted."""
    _current.set(Manner())


def set_manner(quiet: bool, verbose: bool, progress: str | None) -> None:
    """Add what was given. Raises UsageError: no such form, or options that contradict each other."""
    if progress is not None and progress not in FORMS:
        raise UsageError(f"'{progress}' is not one of {', '.join(FORMS)}", where="--progress")
    now = manner()
    now = replace(now, quiet=now.quiet or quiet, verbose=now.verbose or verbose, progress=progress or now.progress)
    if now.quiet and now.verbose:
        raise UsageError("--quiet and --verbose exclude each other")
    _current.set(now)
