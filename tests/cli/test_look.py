"""What a person sees: help, progress, tables and sentences, at several widths; and what a program reads."""

import errno
import json
import os
import re
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

from phicli.artifacts.stages import read_manifest
from phicli.cli.main import COMMANDS, GROUPS, app
from phicli.cli.manner import usual_manner
from phicli.cli.reporter import Counted, Reporter
from phicli.config.setting import settings_of
from phicli.config.steps import FinetuneConfig
from phicli.steps import telling
from phicli.units import ago, number, rough_duration

REPOSITORY = Path(__file__).parents[2]
SINGLE = [name for name in COMMANDS if name not in GROUPS]
NEEDS_PTY = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
CODES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
WORK = """
import time
from phicli.cli import console
with console.task_log("x", ".") as progress:
    with progress.task("reading a/folder/with/a/long/name/of/rows.jsonl", 2e6, "B") as task:
        for _ in range(4): time.sleep(0.1); task.advance(5e5, rows=1200)
    progress.note("first: made, and said in a sentence that is longer than any line of this terminal is, whatever it "
                  "may be called by those who have to read all of it")
    with progress.task("second", 3, "steps") as task:
        for _ in range(3): time.sleep(0.2); task.advance(1, loss="1.234", **{"tok/s": 1500, "eval": "2.345"})
    progress.note("at last: made")
"""
TABLE = """
from phicli.cli import console
console.result_table(("step", "state", "what it gave", "where"), [
    ("quantize", "up to date", "11.0 MB -> 6.2 MB: layers 1.8 MB in int4, embeddings in float16", "models/tiny/awq"),
    ("all", "", None, "models/tiny")])
"""


def at_terminal(code: str, width: int, cwd: Path) -> list[str]:
    """What a program writes to a terminal so wide, line by line and picture by picture."""
    import fcntl
    import pty
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    child = subprocess.Popen([sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, cwd=cwd,
                             env={**environment, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"})
    os.close(follower)
    seen = b""
    while True:
        try:
            more = os.read(leader, 65536)
        except OSError as e:
            assert e.errno == errno.EIO
            break
        if not more:
            break
        seen += more
    os.close(leader)
    assert child.wait(30) == 0, seen
    return [CODES.sub("", part) for line in seen.decode().split("\n") for part in line.split("\r")]


@pytest.mark.parametrize("command", ["", *SINGLE])
def test_help_fits_two_screens(cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    text = cli(*filter(None, [command]), "--help").out
    lines = text.rstrip("\n").splitlines()
    assert len(lines) <= 48 and max(map(len, lines)) <= 80
    top = typer.main.get_command(app)
    shown = top.commands[command] if command else top
    flat = text.replace("\n", " ")
    assert all(max(option.opts, key=len) in flat for option in shown.params if option.param_type_name == "option")
    examples = re.findall(r"^  phicli (.+)$", text, re.M)
    assert len(examples) == 2
    for example in examples:
        named = top.commands[example.split()[0]]
        known = {name for option in named.params for name in option.opts}
        assert not {word for word in example.split() if word.startswith("--")} - known
    pages = re.search(r"^More: (.+)$", text, re.M)[1].split(", ")
    assert pages and all((REPOSITORY / page).is_file() for page in pages)


def test_help_has_the_common_first_and_all_when_asked(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = cli("finetune", "--help").out, cli("finetune", "--help-all").out
    assert "--schedule linear|cosine|constant [linear]" in short
    assert "microsoft/Phi-3.5-mini-instruct]" in short and "…" not in short.replace("azureml://…", "")
    assert "--schedule linear|cosine|constant\n" in whole and "Learning rate schedule" in whole
    assert not [s.env for s in settings_of(FinetuneConfig).values() if s.key and s.env not in whole]
    assert whole.index("--model") < whole.index("\nRows\n") < whole.index("\nGeneral\n")


@NEEDS_PTY
@pytest.mark.parametrize("width", [60, 80, 120])
def test_progress_is_one_line_a_task(tmp_path, width):
    lines = at_terminal(WORK, width, tmp_path)
    assert max(map(len, lines)) <= width
    assert not any("reading" in line and "second" in line for line in lines)
    begun = ("reading", "first: made", "second: ", "at last: made")
    last = [max(i for i, line in enumerate(lines) if line.startswith(name)) for name in begun]
    said = last[1]
    assert last == sorted(last)
    assert any(re.fullmatch(r"second: 3 steps  loss 1\.234  tok/s 1500  eval 2\.345  \d\.\d s", x) for x in lines)
    moving = [line for line in lines if re.search("[12]/3 steps", line)]
    assert moving and (width == 60 or any("━" in line for line in moving))
    note = " ".join(lines[said : said + 4]).split()
    assert "sentence" in note and "terminal" in note and "whatever" in note  # no word is parted


def test_progress_without_a_terminal(tmp_path):
    done = run(WORK, tmp_path)
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "reading a/folder/with/a/long/name/of/rows.jsonl", "first", "second", "at last"]
    assert "\x1b" not in done.stderr and done.stdout == ""


def run(code: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60, check=True,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


def test_progress_for_programs(tmp_path):
    code = "from phicli.cli.manner import set_manner; set_manner(False, False, 'json')" + WORK
    events = [json.loads(line) for line in run(code, tmp_path).stderr.splitlines()]
    assert [e["event"] for e in events if e["event"] != "advance"] == ["begin", "end", "note", "begin", "end", "note"]
    ended = [e for e in events if e["event"] == "end"]
    assert [(e["step"], e["total"], e["unit"]) for e in ended] == [(2e6, 2e6, "B"), (3, 3, "steps")]
    assert ended[1]["task"] == "second" and ended[1]["figures"]["loss"] == "1.234" and 0.2 < ended[1]["seconds"] < 30


@pytest.mark.parametrize("argv", [["-q", "inspect", "-"], ["inspect", "-q", "-"]])
def test_quiet_says_only_errors(cli, monkeypatch, argv, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 3)
    argv[argv.index("-")] = tmp_path / "rows.jsonl"
    done = cli(*argv, "--model", "tiny")
    assert done.code == 0 and done.out and done.err == ""
    assert cli("-q", "inspect", tmp_path / "none.jsonl").err.startswith("error: ")
    assert cli("inspect", tmp_path / "rows.jsonl", "--model", "tiny").err  # it is forgotten


def test_quiet_and_verbose_exclude_each_other(cli):
    assert cli("-q", "config", "-v").code == 2 and cli("config", "--progress", "xml").code == 2


def test_errors_for_programs(cli, tmp_path):
    done = cli("inspect", tmp_path / "none.jsonl", "--progress", "json")
    last = json.loads(done.err.splitlines()[-1])
    assert (done.code, last["event"], last["code"]) == (3, "error", 3) and "none.jsonl" in last["text"]


def test_what_comes_next_for_programs(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = json.loads(cli("list", "--progress", "json").err.splitlines()[-1])
    assert last == {"event": "next", "command": "phicli run"}
    done = cli("logs", "-q", "quantize", "--progress", "json", "--model", "tiny")
    assert json.loads(done.err)["hint"].startswith("phicli logs") and cli("list", "-q").err == ""


def test_verbose_shows_what_libraries_print(tmp_path):
    code = """
from phicli.cli import console
from phicli.cli.manner import set_manner
for verbose in (False, True):
    set_manner(False, verbose, None)
    with console.task_log("x", "."): print("chatter", verbose)
"""
    done = run(code, tmp_path)
    assert done.stdout == "" and done.stderr == "chatter True\n"


def test_time_left_settles(monkeypatch):
    """A slow first step, then steps that take 0.5 or 1.5 s: soon right, and it does not jump."""
    now = [0.0]
    monkeypatch.setattr("phicli.cli.reporter.time.monotonic", lambda: now[0])
    usual_manner()
    task = Counted(Reporter(sys.stderr), "finetune", 100, "steps")
    told = []
    for step in range(100):
        now[0] += 10 if step == 0 else 0.5 + step % 2
        task.advance(1)
        told.append((task.left(), 99 - step))
    assert told[0][0] is None and told[-1][0] is None
    assert all(abs(left - steps) < 0.2 * steps + 2 for left, steps in told[25:99])
    assert all(abs(a[0] - b[0]) < 4 for a, b in pairwise(told[25:99]))


@NEEDS_PTY
def test_tables_become_cards(tmp_path):
    narrow, wide = at_terminal(TABLE, 60, tmp_path), at_terminal(TABLE, 120, tmp_path)
    assert narrow[0] == "quantize" and narrow[2] == "  state up to date" and "┃" not in "".join(narrow)
    assert "┃" in wide[2]
    for lines, width in ((narrow, 60), (wide, 120)):
        assert max(map(len, lines)) <= width
        assert {"embeddings", "float16", "models/tiny/awq"} <= set(" ".join(lines).split())


def test_figures_in_plain_digits():
    assert [number(x) for x in (20063.4, 80.104, 0.00001234, 1e-5, 0, 12, 1e7, -0.5, float("inf"))] == [
        "20,063", "80.1", "0.00001234", "0.00001", "0", "12", "10,000,000", "-0.5", "inf"]
    assert [rough_duration(x) for x in (3.4, 12, 58, 134, 1140, 7800)] == [
        "3 s", "10 s", "1 min", "2 min 15 s", "19 min", "2 h 10 min"]
    assert ago("2020-01-01T00:00:00Z").endswith(" days ago") and ago("") == "" and ago("soon") == "soon"


def test_results_in_sentences(tiny_awq, two_graphs):
    said = telling.trained({"held_out_loss_before": 10.04, "held_out_loss_after": 4.76})
    assert said == "held-out loss 10.04 -> 4.76: each token of a held-out answer is 196 times likelier than before"
    assert "about as likely" in telling.trained({"held_out_loss_after": None, "train_loss_before": 1,
                                                 "train_loss_after": 1})
    stages = [{"stage": name, "perplexity": p, "adapter": a, "missing": None} for name, p, a in (
        ("original", 20063.0, None), ("onnx", 20280.0, None), ("onnx + travel", 80.16, "travel"))]
    assert telling.judged(stages) == ("perplexity 20,063 (original) -> 80.16 (onnx + travel), lower is better: each "
                                      "token of a held-out answer is 250 times likelier than before")
    assert "times less likely" in telling.judged([stages[2], {**stages[1], "adapter": "x"}])
    assert re.fullmatch(r"11\.0 MB -> 6\.\d MB: layers 1\.\d MB in int4, embeddings and output 4\.2 MB in float16",
                        telling.quantized(tiny_awq, read_manifest(tiny_awq)))
    folder = two_graphs / "onnx-ao"
    sizes = re.findall(r"([a-z ]+) ([\d.]+) (kB|MB)", telling.built(folder, read_manifest(folder)))
    assert [name.strip() for name, *_ in sizes] == ["layers and output", "embeddings", "adapters",
                                                    "tokenizer and settings"]


@pytest.mark.parametrize(("words", "found"), [
    ("phicli quantize --algorithm ", "awq gptq rtn kquant quarot"), ("phicli chat --device c", "cuda cpu"),
    ("phicli chat --root ROOT --adapter ", "cooking travel"), ("phicli run --from e", "evaluate"),
    ("phicli chat --model ", "mine tiny")])
def test_completion(optimized, tmp_path, words, found):
    """As bash asks for it, with nothing heavy imported."""
    from phicli.hub.roots import remember_model

    remember_model(tmp_path / "models" / "x", "mine")
    words = words.replace("ROOT", str(optimized))
    code = """
import atexit, sys
from phicli.cli.entry import entry
heavy = {"torch", "rich", "numpy", "onnx", "transformers", "azure"}
atexit.register(lambda: print(*(heavy & set(sys.modules)), end=""))
sys.argv = ["phicli"]
entry()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY), "_PHICLI_COMPLETE": "complete_bash",
                               "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))})
    assert sorted(done.stdout.split()) == sorted(found.split()), done
