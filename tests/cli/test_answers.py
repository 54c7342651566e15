"""Answers drawn at a terminal: Markdown block by block, and columns."""

import io
import random
import re
import time

import pytest

from phicli.cli import answers
from phicli.cli.answers import NARROWEST, Answering, Comparing

ATOMS = ["\n", "\n\n", "# ", "- ", "1. ", "> ", "```", "```py\n", "|a|b|\n|-|-|\n", "|1|", "*", "**", "_", "~~", "`",
         "word ", "    ", "\t", "<b>", "&#x202e;", "&lt;", "[x](y)", "![i](j)", "===\n", "---\n", "\\", "\u202e",
         "\x1b]0;x\x07", "世界", "👩‍🚀", "[", "\r", "\x0b", "\u2028", "99999999999. "]
TEXT = """# Plan

A paragraph of **strong** words, <b>markup</b> and a [link](https://x.example/y).
Its second line

1. First
2. Second

```python
def reverse(text):


    return text
```

Done."""
WHOLE = """Plan

A paragraph of strong words, <b>markup</b> and a [link](https://x.example/y).
Its second line

 1 First
 2 Second

 def reverse(text):


     return text

Done.
"""


@pytest.fixture
def screen(monkeypatch):
    """screen(width): stdout is a terminal of that width, whose text() is all that was written to it."""

    class Screen(io.StringIO):
        def isatty(self):
            return True

        def text(self):
            return "\n".join(map(str.rstrip, re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", self.getvalue()).split("\n")))

    def of(width, height=24):
        for name, value in (("COLUMNS", width), ("LINES", height), ("TERM", "xterm")):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr("sys.stdout", found := Screen())
        return found

    return of


def stream(answering, text, step):
    with answering:
        for at in range(0, len(text), step):
            answering.write(text[at : at + step])


@pytest.mark.parametrize("step", [1, 3, 40, 1000])
def test_an_answer_is_the_same_whole_however_it_comes(screen, step, monkeypatch):
    monkeypatch.setattr(Answering, "draw", lambda self: None)  # what does not stay
    found = screen(80)
    stream(Answering(), TEXT, step)
    assert found.text().lstrip() == WHOLE


def test_while_it_comes_the_growing_block_is_drawn_again_and_nothing_else(screen, monkeypatch):
    monkeypatch.setattr(answers, "EVERY", 0)
    monkeypatch.setattr(answers, "SHARE", 1e9)
    found = screen(80)
    stream(Answering(), TEXT, 2)
    counts = [found.text().count(word) for word in ("Plan", "Its second line", "return text", "Done.")]
    assert max(counts) <= 8 and min(counts) >= 2
    assert found.getvalue().rfind("\x1b[?25h") > found.getvalue().rfind("\x1b[?25l")  # the cursor is back


def test_a_block_higher_than_the_terminal_shows_its_end(screen, monkeypatch):
    screen(40, 10)
    answering = Answering()
    answering._growing = "- a\n" * 50 + "- the last"
    assert len(answering.lines(9)) == 9 and "the last" in "".join(s.text for s in answering.lines(9)[-1])


def test_columns_where_they_fit_and_cards_where_not(screen):
    for width, beside in ((2 * NARROWEST + 2, True), (2 * NARROWEST, False)):
        found = screen(width)
        with Comparing(["no adapter", "with travel"]) as comparing:
            for number, word in ((0, "Rome "), (1, "Kyoto "), (0, "*is*")):
                comparing.write(number, word)
        lines = found.text().rstrip().split("\n")
        assert any("no adapter" in line and "with travel" in line for line in lines) == beside
        assert any(line.startswith("Rome is") and line.endswith("Kyoto") for line in lines) == beside
    found = screen(80)
    with Comparing(["a", "b"], raw=True) as comparing:
        comparing.write(0, "*is*")
    assert "*is*" in found.text()


def test_no_text_breaks_the_drawing_or_commands_the_terminal(screen):
    for seed in range(60):
        draw = random.Random(seed)
        pieces = draw.choices(ATOMS, k=draw.randint(1, 60))
        found = screen(draw.choice([8, 20, 80]), 10)
        with Answering() as answering, Comparing(["a", "b"]) as comparing:
            for piece in pieces:
                answering.write(piece)
                comparing.write(0, piece)
        assert not {"\u202e", "\x07", "\x0b"} & {*found.getvalue()} and "\x1b]" not in found.getvalue(), seed


def test_a_very_long_block_is_left_as_it_is(screen):
    found, begun = screen(80), time.monotonic()
    stream(Answering(), "*a **a " * 20_000, 7000)
    assert "*a **a " in found.text() and time.monotonic() - begun < 10
