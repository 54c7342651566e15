"""How library code reports progress: it is handed an object and never prints."""

from contextlib import AbstractContextManager
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
