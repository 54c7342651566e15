"""`phicli init`: from options in a script, from questions at a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_options_in_a_script(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "phicli.toml").write_text("seed = 3  # a prime\n")
    done = cli("init", "--model", "tiny", "--data", "rows.jsonl", "--device", "cpu", "--workspace-name", "w")
    assert (done.code, done.out) == (0, "phicli.toml\n") and done.err.startswith("next: phicli inspect")
    text = (tmp_path / "phicli.toml").read_text()
    assert text.startswith("seed = 3  # a prime\n") and 'data = ["rows.jsonl"]' in text
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert "../rows.jsonl" in cli("config", "get", "data").out and cli("config", "get", "model").out == "tiny\n"


def test_what_cannot_be_used_is_not_written(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("init", "--data", "nowhere.jsonl").code == 3
    assert cli("init", "--model", "./nowhere").code == 3
    nothing = cli("init")
    assert nothing.code == 2 and "phicli init --model tiny" in nothing.err and not list(tmp_path.iterdir())


def test_questions_at_a_terminal(tmp_path):
    """Enter takes what is offered; a workspace that is not named is not asked about further."""
    leader, follower = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "dumb"}
    child = subprocess.Popen([sys.executable, "-m", "phicli", "init", "--device", "cpu"], cwd=tmp_path, env=env,
                             stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    os.write(leader, b"nowhere.jsonl\n\ntiny\n\n")
    said = b""
    while block := _read(leader):
        said += block
    assert child.wait(60) == 0, said.decode()
    assert said.count(b"Rows to train on") == 2 and b"no such file or folder" in said
    assert b"[tiny]" in said and b"Its resource group" not in said
    assert (tmp_path / "phicli.toml").read_text() == (
        'device = "cpu"\ndata = ["data/data_sample_travel.jsonl"]\nmodel = "tiny"\n')


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 4096)
    except OSError:  # the child has ended
        return b""
