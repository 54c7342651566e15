"""scripts/first_hour.py: its page has what it types, and its terminal shows what a real one would."""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first-hour.md").read_text()
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield runpy.run_path(str(ROOT / "scripts" / "first_hour.py"))
    sys.path.remove(str(ROOT / "scripts"))


def test_the_page_has_every_command_in_80_columns(script):
    typed = [command if isinstance(command, str) else command[0]
             for scene in script["SCENES"] for command in scene.commands]
    shown = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    assert re.findall(r"^\$ (.+)$", "".join(shown), re.M) == typed
    assert max(len(line) for text in shown for line in text.splitlines()) <= 80
    assert "Traceback" not in PAGE


def test_the_terminal_shows_what_a_real_one_would(script, tmp_path):
    terminal = script["Terminal"](tmp_path, os.environ)
    program = r"printf 'one\rtwo\n\033[31mred\n\033[1A\033[2Kgone\n'; read -r x; echo got $x; tput cols; exit 3"
    assert terminal.run(program, [script["Typed"]("gone", "hello\n")]) == 3
    assert terminal.lines()[-6:] == ["two", "gone", "hello", "got hello", "80", ""]
    with pytest.raises(TimeoutError, match="never said 'more'"):
        terminal.run("echo less", [script["Typed"]("more", "")])
    terminal.run(r"printf '\033[32mgreen\033[0m <b>'")
    picture = terminal.svg("title")
    assert "#98c379" in picture and "<b>" not in picture and "&lt;b&gt;" in picture
    assert "://" not in picture.replace("http://www.w3.org/", "")
