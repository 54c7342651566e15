"""Names and texts that command a terminal, signals at any moment, readers that leave and streams that are closed."""

import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phicli.artifacts.stages import check_whole
from phicli.cli import console, line_editor
from phicli.errors import BadInput
from phicli.printable import printable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals, no such signals")

EVIL = "a\x1b]0;x\x07\x9b31mb\x7f\u202ec\u200bd\ufeff\U000e0041[bold red]e:smile:"
SHOWN = "a\\x1b]0;x\\x07\\x9b31mb\\x7f\\u202ec\\u200bd\\ufeff\\U000e0041[bold red]e:smile:"
COMMANDS = set(EVIL) & set("\x07\x9b\x7f\u202e\u200b\ufeff\U000e0041")
REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "600", "TERM": "xterm"}
PHICLI = [sys.executable, "-m", "phicli"]
QUANTIZE = ["quantize", "--model", "tiny", "--root", "lab", "--samples", "8", "--seq-len", "64", "--device", "cpu"]


class Terminal:
    """A command with a pseudo-terminal for all three streams, in a session of its own."""

    def __init__(self, *argv: object, cwd: Path, command: list[str] = PHICLI):
        import fcntl
        import pty
        import termios

        self.leader, follower = pty.openpty()
        self.modes = lambda: termios.tcgetattr(self.leader)
        self.before, self.seen = self.modes(), ""
        self.child = subprocess.Popen(
            [*command, *map(str, argv)], stdin=follower, stdout=follower, stderr=follower, cwd=cwd,
            env={**ENVIRONMENT, "XDG_STATE_HOME": str(cwd)}, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # hangs up with its terminal
        os.close(follower)

    def until(self, text: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert select.select([self.leader], [], [], max(0.0, end - time.monotonic()))[0], (text, self.seen)
            assert self._read(), (text, self.seen)

    def _read(self) -> bool:
        try:
            more = os.read(self.leader, 65536)
        except OSError as e:
            assert e.errno == errno.EIO  # the command has ended
            return False
        self.seen += more.decode(errors="surrogateescape")
        if b"\x1b[6n" in more:  # where is the cursor?
            os.write(self.leader, b"\x1b[1;1R")
        return bool(more)

    def end(self) -> int:
        while self._read():
            pass
        return self.child.wait(30)


@pytest.fixture
def at_terminal(tmp_path):
    """at_terminal(*argv, cwd=…) -> Terminal; ended with the test."""
    begun: list[Terminal] = []

    def start(*argv: object, cwd: Path = tmp_path, **more) -> Terminal:
        begun.append(Terminal(*argv, cwd=cwd, **more))
        return begun[-1]

    yield start
    for terminal in begun:
        terminal.child.kill()
        terminal.child.wait()
        os.close(terminal.leader)


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess:
    """A line for bash in which $P is phicli."""
    return subprocess.run(["bash", "-c", f'P="{sys.executable} -m phicli"; {line}'], cwd=cwd, env=ENVIRONMENT,
                          capture_output=True, timeout=120)


@pytest.mark.parametrize(("argv", "code"), [
    (["quantize", "--model", EVIL], 3), (["status", "--root", EVIL], 0), (["inspect", f"{EVIL}.jsonl"], 3),
    (["inspect", "evil.jsonl"], 3), (["config"], 0), ([EVIL], 2), (["quantize", f"--{EVIL}"], 2),
    (["chat", "--path", EVIL, "-p", "x"], 4), (["finetune", "--method", EVIL], 2)])
def test_names(at_terminal, tmp_path, argv, code):
    """ESC and C1 codes, reversed and invisible text, markup in names, options, rows and settings: spelled out."""
    (tmp_path / "evil.jsonl").write_text(json.dumps({EVIL: EVIL}) + "\n", encoding="utf-8")
    evil = "".join(f"\\U{ord(c):08x}" for c in EVIL)
    (tmp_path / "phicli.toml").write_text(f'[chat]\nsystem = "{evil}"\n')
    terminal = at_terminal(*argv)
    assert terminal.end() == code, terminal.seen
    assert "b\\x7f\\u202ec" in terminal.seen and not COMMANDS & set(terminal.seen)
    assert "\x1b]" not in terminal.seen and ":smile:" in terminal.seen and "[bold red]" in terminal.seen


def test_messages(at_terminal, tmp_path):
    """A message of several lines that looks like a hint of ours: its further lines are set in."""
    code = f"""
from phicli.cli import console
from phicli.errors import BadInput
evil = {EVIL!r} + "\\n  try: curl x | sh\\nerror: y"
console.note(evil); console.warn(evil); console.failure(BadInput(evil, where=evil, hint=evil))
console.result_table([evil], [[evil]], evil); console.result_lights([("red", evil, evil, evil)])
with console.task_log("x", ".") as progress:
    progress.note(evil); progress.warn(evil)
    with progress.task(evil, 1, evil) as task: task.advance(1, **{{evil: evil}})
"""
    terminal = at_terminal("-c", code, command=[sys.executable])
    assert terminal.end() == 0, terminal.seen
    assert terminal.seen.count(SHOWN) >= 16 and not COMMANDS & set(terminal.seen)
    lines = re.sub(r"\x1b\[[\d;?]*\w", "", terminal.seen).split("\r\n")
    assert "      try: curl x | sh" in lines and not any(line.startswith(("  try: curl", "error: y")) for line in lines)


def test_path_exact(tmp_path):
    """A folder whose name is no text, as the result: to a pipe byte by byte."""
    done = run_entry(tmp_path, "console.result(os.fsdecode(b'/\\xff\\x1b\\xc2\\x9b'))")
    assert (done.returncode, os.fsencode(done.stdout), done.stderr) == (0, b"/\xff\x1b\xc2\x9b\n", ""), done


def test_json(capsys):
    """Control characters, lone surrogates, NaN, Infinity in a document: valid JSON, the same texts, null."""
    console.result_json({EVIL: [EVIL, "\ud800", float("nan"), {"x": (float("-inf"), 1.5)}], "p": Path("/a\x9b")})
    out = capsys.readouterr().out
    assert all(c == "\n" or c.isprintable() for c in out)
    found = json.loads(out, parse_constant=pytest.fail)
    assert found == {EVIL: [EVIL, "\ud800", None, {"x": [None, 1.5]}], "p": "/a\x9b"}


def test_other_scripts():
    """Joined emoji, Persian, Hebrew, ideographic spaces in answers: left as they are."""
    for text in ("👩‍🚀 ❤️", "می‌خواهم", "שלום\u200f עולם", "東京　大阪", "tab\tline\n", "½ é ñ"):
        assert printable(text) == text
    assert printable("pay\u200dpal \udcff\ud800") == "pay\\u200dpal \\xff\\ud800"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_chat_ended(at_terminal, optimized, number, code):
    """SIGTERM, SIGHUP at the chat prompt: the terminal is as it was, exit codes 143, 129."""
    terminal = at_terminal("chat", "--root", optimized)
    terminal.until("\x1b[?2004h")  # bracketed paste
    assert terminal.modes() != terminal.before
    time.sleep(0.5)  # while prompt_toolkit loads its history, it prints an exception and goes on; see `insist`
    terminal.child.send_signal(number)
    assert terminal.end() == code and "Traceback" not in terminal.seen, terminal.seen
    assert terminal.modes() == terminal.before
    assert terminal.seen.rfind("\x1b[?2004l") > terminal.seen.rfind("\x1b[?2004h")


@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.1])
def test_chat_ended_while_it_begins(at_terminal, optimized, after):
    """SIGTERM while the chat prompt is being set up: the terminal is as it was, exit code 143, 5 s later at most."""
    terminal = at_terminal("chat", "--root", optimized)
    terminal.until("\x1b[?2004h")
    time.sleep(after)
    terminal.child.send_signal(signal.SIGTERM)
    assert terminal.end() == 143 and terminal.modes() == terminal.before, terminal.seen
    assert terminal.seen.rfind("\x1b[?2004l") > terminal.seen.rfind("\x1b[?2004h")


def test_chat_hung_up(at_terminal, optimized):
    """A terminal that is closed at the chat prompt: the process ends."""
    terminal = at_terminal("chat", "--root", optimized)
    terminal.until("\x1b[?2004h")  # bracketed paste
    os.close(terminal.leader)
    try:
        assert terminal.child.wait(30) in (0, 129)  # the end of the input may be seen first
    finally:
        terminal.leader = os.open(os.devnull, os.O_RDONLY)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to see which signals are caught")
@pytest.mark.parametrize("after", [0, 0.02, 0.1, 0.3, 1.0, 3.0])
def test_key_held_down(tmp_path, after):
    """Ctrl-C again and again, from the start of the imports on: exit code 130, nothing said, nothing left."""
    child = subprocess.Popen([*PHICLI, *QUANTIZE], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{child.pid}/status")
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) & 1 << signal.SIGTERM - 1:
        time.sleep(0.001)  # before that it is Python itself that starts
    time.sleep(after)
    while child.poll() is None:
        child.send_signal(signal.SIGINT)
        time.sleep(0.02)
    out, err = child.communicate()
    assert child.returncode == 130 and not out, err
    assert "Traceback" not in err and "Error" not in err and "Exception" not in err
    assert [p.name for p in tmp_path.rglob("*") if p.name not in ("lab", "logs")] == []


@pytest.mark.parametrize("error", ["ImportError('numpy failed')", "SystemError('no result')", "BadInput('no numpy')"])
def test_interrupt_disguised(tmp_path, error):
    """Ctrl-C that a compiled library turns into an error of its own: exit code 130, not a fault."""
    done = run_entry(tmp_path, f"""
    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(9)
    except KeyboardInterrupt: raise {error} from None""")
    assert (done.returncode, done.stderr) == (130, ""), done


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_interrupt_dropped(tmp_path, number):
    """Ctrl-C, SIGTERM in a destructor or callback, where Python drops exceptions: ends the command all the same."""
    done = run_entry(tmp_path, f"""
    class Short:
        def __del__(self): os.kill(os.getpid(), signal.{number}); time.sleep(1)
    Short(); time.sleep(9)""")
    assert (done.returncode, done.stderr) == ({"SIGINT": 130, "SIGTERM": 143}[number], ""), done


@pytest.mark.parametrize("when", ["atexit.register(wait)", "threading.Thread(target=wait).start()"])
def test_interrupt_at_the_end(tmp_path, when):
    """Ctrl-C while libraries and threads end: exit code 130, nothing said."""
    done = run_entry(tmp_path, f"""
    def wait():
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start(); time.sleep(5)
    {when}""")
    assert (done.returncode, done.stderr) == (130, ""), done


def run_entry(cwd: Path, body: str) -> subprocess.CompletedProcess:
    """The console script with a command that does this."""
    code = f"""
import atexit, os, signal, sys, threading, time
from phicli.cli import console, process
from phicli.cli import main as cli
from phicli.cli.entry import entry
from phicli.errors import BadInput
@cli.app.command()
def strange():
    {body}
sys.argv = ["phicli", "strange"]
entry()
"""
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True,
                          errors="surrogateescape", timeout=60)


def test_terminated(tmp_path):
    """SIGTERM in the middle of a step: exit code 143, temporary folders are gone."""
    child = subprocess.Popen([*PHICLI, *QUANTIZE], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("lab/.awq.new-*")):
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    child.terminate()
    _, err = child.communicate(timeout=60)
    assert child.returncode == 143 and "Traceback" not in err, err
    assert [p.name for p in tmp_path.rglob("*") if p.name not in ("lab", "logs")] == []


@pytest.mark.parametrize("reader", ["2>&1 | head -1", "2>/dev/full | true"])
def test_reader_left(tmp_path, reader):
    """Whoever reads notes and result leaves, or the disk for them is full: the step goes on to its end."""
    done = shell(f"$P {' '.join(QUANTIZE)} {reader}; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done
    assert (tmp_path / "lab" / "awq" / "phicli.json").is_file()


def test_pipe_of_the_work(tmp_path):
    """A pipe or connection of the work that breaks: an error, where it was taken for a reader that had left."""
    done = run_entry(tmp_path, "raise BrokenPipeError(32, 'Broken pipe')")
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr and "Traceback" not in done.stderr, done


def test_result_has_no_room(tmp_path):
    """Stdout on a full disk: exit code 4, since the result is not there."""
    for command in ("config", "config --json", "inspect - <<< '{\"a\": 1}'"):
        done = shell(f"$P {command} > /dev/full", tmp_path)
        assert done.returncode == 4 and b"No space left" in done.stderr and b"Traceback" not in done.stderr, done


@pytest.mark.parametrize(("command", "code"), [
    ("status", 0), ("config", 0), ("chat --root LAB", 2), ("inspect -", 3), ("upload", 4), ("azure show", 4)])
@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed(tmp_path, optimized, command, code, closed):
    """Stdin, stdout, stderr closed from the start, in any command: as with the null device."""
    done = shell(f"$P {command.replace('LAB', str(optimized))} {closed}", tmp_path)
    assert done.returncode == code and b"Traceback" not in done.stderr and b"AttributeError" not in done.stderr, done


def test_closed_files(tmp_path):
    """Stdout and stderr closed, so that files opened next have their numbers: nothing is written into these."""
    assert shell(f"$P {' '.join(QUANTIZE)} <&- >&- 2>&-", tmp_path).returncode == 0
    check_whole(tmp_path / "lab" / "awq")
    (tmp_path / "opens.py").write_text("""
import os
from phicli.cli import process
process.open_streams()
assert all(map(os.get_inheritable, range(3))) and os.open("x", os.O_CREAT | os.O_WRONLY) > 2
os.write(1, b"said"); os.write(2, b"said"); print("said")
""")
    done = shell(f"{sys.executable} opens.py <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0 and (tmp_path / "x").read_text() == ""


@pytest.mark.parametrize("error", ["StopIteration()", "AssertionError()", "KeyError('rope_type')", "Panic()"])
def test_no_words(tmp_path, error):
    """An exception without words, or, as a panic in Rust, not even an Exception: exit code 1, and where it came up."""
    done = run_entry(tmp_path, f"""
    class Panic(BaseException): pass
    from phicli.cli.repl import Repl
    def read(): raise {error}
    Repl(None, read, None, None).run()""")
    wanted = f"phicli.cli.repl.run: unexpected {error.partition('(')[0]}"
    assert done.returncode == 1 and wanted in done.stderr and "Traceback" not in done.stderr, done


def test_history_of_others(tmp_path, monkeypatch):
    """The chat's history in a folder that others can write to, with a link in its place: kept in memory."""
    (tmp_path / "phicli").mkdir()
    (tmp_path / "phicli" / "chat_history").symlink_to(tmp_path / "victim")
    tmp_path.chmod(0o777)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    line_editor._history().append_string("secret")
    assert not (tmp_path / "victim").exists()
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    assert line_editor.history_file().is_absolute()


def test_answer_to_a_reader_who_left(tmp_path, optimized):
    """`phicli chat | head -c 1`: ends without the rest of the answer, exit code 0."""
    done = shell(f"$P chat --root {optimized} -p Hello! | head -c 1; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"Error" not in done.stderr, done


def test_errors_name_bytes(capsys):
    """A name that is no UTF-8 in a message: its bytes are spelled out."""
    console.failure(BadInput("no file", where=os.fsdecode(b"/x\xff\x9b")))
    assert "/x\\xff\\x9b: no file" in capsys.readouterr().err
