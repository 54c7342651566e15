"""Errors that a user can act on, and the exit code that each kind gives."""

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    OK = 0
    FAULT = 1
    USAGE = 2
    BAD_INPUT = 3
    MISSING = 4
    REMOTE = 5
    REFUSED = 6
    INTERRUPTED = 130


class PhicliError(Exception):
    """An error with a message for people.

    Args:
        message: what is wrong, one line, no trailing period needed.
        where: the file, `file:line` or setting it was found in.
        hint: the command or action that helps: a command alone, on a line that can be pasted, or words and, after a
            colon, a command. also: what helps too, in the same form; each is a line of its own.
    """

    exit_code = ExitCode.FAULT

    def __init__(self, message: str, *, where: str | Path | None = None, hint: str | None = None,
                 also: Sequence[str] = ()):
        super().__init__(message)
        self.message, self.where, self.hint, self.also = message, where, hint, tuple(also)

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(PhicliError):
    """Options that do not go together or have an impossible value."""

    exit_code = ExitCode.USAGE


class BadInput(PhicliError):
    """Data, a model, an adapter or a settings file that cannot be used as it is."""

    exit_code = ExitCode.BAD_INPUT


class Missing(PhicliError):
    """Something the machine lacks: a GPU, a package, a login, disk, memory, a finished earlier step."""

    exit_code = ExitCode.MISSING


class RemoteError(PhicliError):
    """A remote service failed or refused."""

    exit_code = ExitCode.REMOTE


class Refused(PhicliError):
    """A build that was measured and is worse than its limits, or than the last accepted one, allow."""

    exit_code = ExitCode.REFUSED
