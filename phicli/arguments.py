"""What a program gives to the functions of `phicli.api`, as steps take it: rows, settings, progress."""

import difflib
import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from phicli.config import StepConfig
from phicli.config.setting import settings_of
from phicli.dataset.in_memory import as_named
from phicli.errors import UsageError
from phicli.progress import Progress, automatic

Config = TypeVar("Config", bound=StepConfig)
Function = TypeVar("Function", bound=Callable[..., Any])
ROWS = ("data", "eval_data", "own_rows")  # settings that name files of rows


def takes_rows(function: Function) -> Function:
    """A function to which rows may be given as they are in memory, in place of the names of files."""

    @functools.wraps(function)
    def with_files(*given: Any, **settings: Any) -> Any:
        with ExitStack() as files:
            def named(value: Any) -> Any:
                return files.enter_context(as_named(value))

            return function(*map(named, given), **{k: named(v) if k in ROWS else v for k, v in settings.items()})

    return with_files  # type: ignore[return-value]


def config_of(kind: type[Config], first: str, given: Any, settings: dict[str, Any]) -> Config:
    """The settings object that a call means. Raises UsageError: a setting that there is not, or both ways at once."""
    from phicli.hub.roots import check_default_root

    if isinstance(given, StepConfig):
        if not isinstance(given, kind) or settings:
            raise UsageError(f"takes a {kind.__name__} alone, or settings as keywords")
        check_default_root(given)
        return given
    if given is not None:
        settings = {first: given, **settings}
    known = settings_of(kind)
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        options = {flag.split("/")[0].lstrip("-").replace("-", "_"): name for name, setting in known.items()
                   for flag in setting.flags}
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = options.get(unknown[0]) or (near[0] if near else None)
        raise UsageError(f"no setting {unknown[0]!r}; there are: {', '.join(known)}",
                         hint=f"did you mean {meant}?" if meant else None)
    config = kind(**settings)
    check_default_root(config)
    return config


def progress_of(progress: Progress | None) -> Progress:
    """What a program gave, or `automatic()`. Raises UsageError: it is no `Progress`, as `print` is none."""
    if progress is None:
        return automatic()
    if any(not callable(getattr(progress, method, None)) for method in ("task", "note", "warn")):
        raise UsageError(f"needs an object with the methods task, note and warn, not {repr(progress)[:40]}",
                         where="progress", hint="progress=phicli.progress.Bars(), or an object as in docs/python.md")
    return progress
