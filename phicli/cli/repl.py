"""The loop of questions and answers at a terminal. It reads and writes through functions."""

from collections.abc import Callable

from phicli.cli.slash import Slash
from phicli.errors import PhicliError


class Repl:
    """Reads messages until the end and answers them.

    Args:
        slash: runs commands and asks the model.
        read: gives the next message; raises EOFError at the end, KeyboardInterrupt when the line is given up.
        note: shows one line beside the answers. fail: shows an error; the loop goes on.
    """

    def __init__(self, slash: Slash, read: Callable[[], str], note: Callable[[str], None],
                 fail: Callable[[PhicliError], None]):
        self.slash, self.read, self.note, self.fail = slash, read, note, fail

    def run(self) -> None:
        going_on = True
        while going_on:
            try:
                line = self.read()
            except KeyboardInterrupt:
                self.note("Ctrl-D leaves")
                continue
            except EOFError:
                return
            try:
                going_on = self.take(line)
            except PhicliError as e:
                self.fail(e)

    def take(self, line: str) -> bool:
        """One command or message; False: it was the last."""
        if line.startswith("/") and not line.startswith("//"):
            return self.slash.run(line)
        if line.strip():
            self.slash.ask(line[1:] if line.startswith("//") else line)
        return True
