"""One process at a time, with real processes."""

import json
import subprocess
import sys
import time

from phicli.artifacts.locks import held, holder

HOLD = """
import sys, time
from pathlib import Path
from phicli.artifacts.locks import held
from phicli.progress import SILENT
with held(Path(sys.argv[1]), SILENT):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


class Notes(list):
    def note(self, text):
        self.append(text)


def hold(folder, seconds):
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_waits_and_says_for_whom(tmp_path):
    folder = tmp_path / "new" / "awq"
    with hold(folder, 1.0) as process:
        begun, notes = time.monotonic(), Notes()
        assert f"process {process.pid} " in holder(folder)
        with held(folder, notes, wait=False) as got:
            assert not got
        with held(folder, notes) as got:
            assert got and time.monotonic() - begun > 0.3
    (note,) = notes
    assert note.startswith(f"waiting for {folder}: process {process.pid} (") and "since 20" in note
    assert list(folder.parent.iterdir()) == [] and holder(folder) is None


def test_a_dead_holder_holds_nothing(tmp_path):
    with hold(tmp_path / "awq", 60) as process:
        process.kill()
        process.wait()
    notes = Notes()
    assert (tmp_path / ".awq.lock").is_file() and holder(tmp_path / "awq") is None
    with held(tmp_path / "awq", notes) as got:
        assert got and notes == []


def test_a_lock_file_with_anything_in_it(tmp_path):
    huge = json.dumps({"pid": 10**30, "host": "h", "command": "c", "since": 1})
    for content in ("", "{", "[]", '{"pid": "x"}', huge, "[" * 100_000):
        (tmp_path / ".awq.lock").write_text(content)
        holder(tmp_path / "awq")
        with held(tmp_path / "awq", Notes()) as got:
            assert got


def test_where_no_lock_can_be_made_the_work_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    with held(tmp_path / "file" / "awq", Notes()) as got:
        assert not got
