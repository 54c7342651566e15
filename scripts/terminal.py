"""A terminal of 80 columns and 24 lines that remembers what a person sees in it: commands run in it, keys are typed."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COLUMNS, LINES = 80, 24
NAMES = {"brown": "yellow"} | {f"bright{name}": f"bright_{name}" for name in (
    "black", "red", "green", "blue", "magenta", "cyan", "white")} | {"brightbrown": "bright_yellow"}  # pyte's -> rich's
THEME = TerminalTheme((24, 27, 33), (220, 223, 228), [
    (70, 76, 86), (224, 108, 117), (152, 195, 121), (229, 192, 123), (97, 175, 239), (198, 120, 221), (86, 182, 194),
    (220, 223, 228)])
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" class="rich-terminal" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""  # as rich's own, without the fonts that it would have fetched from another host


@dataclass(frozen=True)
class Typed:
    """Keys to type once `after` is seen on the screen."""

    after: str
    keys: str


class Screen(pyte.HistoryScreen):
    """Answers to what a program asks its terminal (where is the cursor?) go back to the program."""

    answer: int

    def write_process_input(self, data: str) -> None:
        os.write(self.answer, data.encode())


class Terminal:
    """Runs commands one after the other, each with a pseudo-terminal of its own and one screen for all of them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self.folder, self.environment = folder, {**environment, "TERM": "xterm-256color", "COLORTERM": ""}
        self.screen = Screen(COLUMNS, LINES, history=100_000)
        self.screen.set_mode(pyte.modes.LNM)
        self.stream = pyte.ByteStream(self.screen)

    def run(self, command: str, typed: Sequence[Typed] = (), seconds: float = 900) -> int:
        """Run a line of bash as if it were typed; its exit code. Raises TimeoutError if a text to type after is not
        seen in time."""
        self.stream.feed(f"$ {command}\n".encode())
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.screen.answer = leader
        child = subprocess.Popen(["bash", "-c", command], stdin=follower, stdout=follower, stderr=follower,
                                 cwd=self.folder, env=self.environment, start_new_session=True)
        os.close(follower)
        end = time.monotonic() + seconds
        for one in typed:
            mark = len(self.rows())
            while one.after not in "\n".join(self.lines()[mark:]):
                if not self.read(leader, end):
                    raise TimeoutError(f"{command}: never said {one.after!r}\n" + "\n".join(self.lines()[-LINES:]))
            time.sleep(0.3)
            os.write(leader, one.keys.encode())
        while self.read(leader, end):
            pass
        os.close(leader)
        if self.screen.cursor.x:
            self.stream.feed(b"\n")
        return child.wait(30)

    def read(self, leader: int, end: float) -> bool:
        """Show what the program has written; False once it has ended, or the time has."""
        if not select.select([leader], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        try:
            more = os.read(leader, 65536)
        except OSError:
            return False
        self.stream.feed(more)
        return bool(more)

    def rows(self) -> list[Mapping[int, pyte.screens.Char]]:
        return [*self.screen.history.top, *(self.screen.buffer[y] for y in range(self.screen.cursor.y))]

    def lines(self) -> list[str]:
        """What was seen, the line of the cursor included, without blanks at the ends of lines."""
        rows = [*self.rows(), self.screen.buffer[self.screen.cursor.y]]
        return ["".join(row[x].data for x in range(COLUMNS)).rstrip() for row in rows]

    def text(self) -> str:
        return "\n".join(self.lines()).rstrip() + "\n"

    def svg(self, title: str) -> str:
        """The same with its colours, as a picture."""
        console = Console(width=COLUMNS, record=True, force_terminal=True, file=io.StringIO())
        rows = [Text.assemble(*(("".join(char.data for char in chars), look) for look, chars in
                                groupby((row[x] for x in range(COLUMNS)), style))) for row in self.rows()]
        while rows and not rows[-1].plain.strip():
            rows.pop()
        console.print(Text("\n").join(rows), soft_wrap=True)
        picture = console.export_svg(title=title, theme=THEME, code_format=SVG, unique_id="phicli")
        return re.sub(r"[ \t]+$", "", picture, flags=re.M)


def style(char: pyte.screens.Char) -> Style:
    """What a character of the screen looks like."""
    def colour(name: str) -> str | None:
        if name == "default":
            return None
        return f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else NAMES.get(name, name)

    return Style(color=colour(char.fg), bgcolor=colour(char.bg), bold=char.bold, italic=char.italics,
                 underline=char.underscore, reverse=char.reverse)


