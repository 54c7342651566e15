"""How library code reports progress: it is handed an object and never prints."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Task(Protocol):
    """One bar. `advance(n, loss=1.2)` moves it by n and shows the figures given so far beside it."""

    def advance(self, n: float = 1, **figures: Any) -> None: ...


class Progress(Protocol):
    """What library code may say while it works."""

    def task(
        self, title: str, total: float | None = None, unit: str = ""
    ) -> AbstractContextManager[Task]:
        """A bar for `total` units of work; unit "B" counts bytes; total None means unknown."""

    def note(self, text: str) -> None:
        """One line that a person may want to know."""

    def warn(self, text: str) -> None:
        """One line that a person should know."""


class _SilentTask(AbstractContextManager):
    def advance(self, n: float = 1, **figures: Any) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass


class Silent:
    """Reports nothing: the default of every library function."""

    def task(self, title: str, total: float | None = None, unit: str = "") -> _SilentTask:
        return _SilentTask()

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass


SILENT = Silent()


class Bars:
    """Bars of tqdm, which are pictures in a notebook and lines elsewhere; what is said stands between them."""

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        with _tqdm()(desc=title, total=total, unit=unit or "it", unit_scale=unit == "B") as bar:
            yield _Bar(bar)

    def note(self, text: str) -> None:
        _tqdm().write(text, file=sys.stderr)

    warn = note


@contextmanager
def keeping(what: Callable[[], str]) -> Iterator[None]:
    """Note on an interruption of the block what is kept of the work; "" for nothing. Whoever ends the command says it.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as e:
        if (text := what()) and text not in getattr(e, "__notes__", []):
            e.add_note(text)
        raise


def _tqdm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that without ipywidgets bars are text
        from tqdm.auto import tqdm

    return tqdm


class _Bar:
    def __init__(self, bar: Any):
        self._bar = bar

    def advance(self, n: float = 1, **figures: Any) -> None:
        if figures:
            self._bar.set_postfix(figures, refresh=False)
        self._bar.update(n)


def automatic() -> Progress:
    """Bars in a notebook, silence elsewhere."""
    return Bars() if "ipykernel" in sys.modules else SILENT
