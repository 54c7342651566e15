"""`phicli inspect` as a user meets it: exit codes, streams, messages."""

import gzip
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

DATA = Path(__file__).parents[2] / "data"
ROWS = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(30)]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def dirty(tmp_path):
    path = tmp_path / "dirty.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    lines[16] = '{"prompt": "broken"'
    lines[20] = json.dumps({"prompt": "\x1b[2J<|end|>", "response": "a &amp; b"})
    path.write_text("\n".join([*lines, lines[0]]) + "\n")
    return path


def test_clean_rows(cli, rows):
    done = cli("inspect", rows, "--model", "tiny")
    assert done.code == 0
    assert "30 rows, 0 that cannot be used, 0 duplicates" in done.out and "No findings" in done.out
    assert "Question 2?" in done.out and "Question 3?" not in done.out
    assert "Findings" not in done.out
    assert "reading" in done.err and "warning" not in done.err


def test_findings_are_shown_with_lines_and_end_with_0(cli, dirty):
    done = cli("inspect", dirty, "--model", "tiny")
    assert done.code == 0
    for text in ("bad_json", "17", "special_token", "html_entity", "control_character", "duplicate_row", "31"):
        assert text in done.out
    assert "\x1b" not in done.out


def test_json_is_one_document(cli, dirty):
    done = cli("inspect", dirty, "--model", "tiny", "--json")
    report = json.loads(done.out)
    assert {"rows", "bad_rows", "fields", "duplicate_rows", "duplicate_prompts", "tokens", "warnings"} <= set(report)
    assert (report["rows"], report["bad_rows"], report["duplicate_rows"]) == (30, 1, 1)
    assert all({"code", "count", "lines", "message"} <= set(warning) for warning in report["warnings"])
    assert report["warnings"][0]["code"] == "bad_json" and report["warnings"][0]["lines"] == [17]


def test_default_is_the_data_setting(cli, rows, monkeypatch):
    monkeypatch.setenv("PHICLI_DATA", str(rows))
    assert json.loads(cli("inspect", "--model", "tiny", "--json").out)["rows"] == 30


def test_the_travel_data_is_clean(cli):
    for name in ("sample", "eval"):
        report = json.loads(cli("inspect", DATA / f"data_{name}_travel.jsonl", "--model", "tiny", "--json").out)
        assert report["warnings"] == [] and report["rows"] >= 40


def test_options(cli, rows):
    done = cli("inspect", rows, "--model", "tiny", "--json", "--rows", 1, "--max-tokens", 5,
               "--text-template", "{prompt}")
    report = json.loads(done.out)
    assert len(report["first_rows"]) == 1
    codes = {warning["code"]: warning["count"] for warning in report["warnings"]}
    assert codes["extra_field"] == 30 and report["tokens"]["limit"] == 5
    assert report["tokens"]["over_limit"] == codes.get("too_long", 0)


def test_gz(cli, rows, tmp_path):
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(rows.read_bytes()))
    assert json.loads(cli("inspect", packed, "--model", "tiny", "--json").out)["rows"] == 30


def test_stdin(cli, rows, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(rows.read_bytes()))))
    report = json.loads(cli("inspect", "-", "--model", "tiny", "--json").out)
    assert (report["rows"], report["file"]) == (30, "stdin")


def test_a_model_that_is_not_here_is_not_fetched(rows, tmp_path):
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-m", "phicli", "inspect", str(rows), "--json"], env=environment,
                          capture_output=True, text=True, timeout=30, cwd=tmp_path)  # where no model was used last
    assert done.returncode == 0
    assert json.loads(done.stdout)["tokens"] is None
    assert "tokens are left out" in done.stderr and "--model tiny" in done.stderr


def test_fix(cli, dirty, tmp_path):
    out = tmp_path / "clean.jsonl"
    done = cli("inspect", dirty, "--model", "tiny", "--fix", out)
    assert done.code == 0
    assert "left out" in done.out and "changed" in done.out and str(out.name) in done.out
    assert re.search(r"rewritten\W+their texts\W+1\b", done.out)
    report = json.loads(cli("inspect", out, "--model", "tiny", "--json").out)
    assert report["rows"] == 29
    assert [warning["code"] for warning in report["warnings"]] == ["special_token"]


def test_fix_over_the_input_is_a_usage_error(cli, rows):
    before = rows.read_bytes()
    done = cli("inspect", rows, "--model", "tiny", "--fix", rows)
    assert (done.code, done.out) == (2, "")
    assert rows.read_bytes() == before


@pytest.mark.parametrize("name", ["out.csv", "out.parquet", "out.jsonl.zst", "out.TSV.gz", "out.zip"])
def test_fix_to_the_name_of_another_format_is_a_usage_error(cli, rows, tmp_path, name):
    done = cli("inspect", rows, "--model", "tiny", "--fix", tmp_path / name)
    assert (done.code, done.out) == (2, "") and list(tmp_path.iterdir()) == [rows]
    assert "another format" in done.err and f"try: --fix {tmp_path / 'out.clean.jsonl'}\n" in done.err


@pytest.mark.parametrize(("content", "message"), [
    (None, "no such file"), (b"", "no rows"), (b"PAR1\0\0", "Parquet"), (b"\x89PNG\r\n\0\0", "binary"),
    (gzip.compress(b"{}" * 50, mtime=0)[:-9], "truncated"),
])
def test_unusable_files(cli, tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    done = cli("inspect", path, "--model", "tiny", "--fix", tmp_path / "out.jsonl")
    assert (done.code, done.out) == (3, "")
    assert message in done.err and str(path) in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out.jsonl").exists()


def test_what_is_left_out_of_a_folder_is_told_once_and_in_dry_runs(cli, tiny_awq, rows, tmp_path):
    place = tmp_path / "set"
    for name in ("faq", "test_bench_manual", "eval-of-lathe"):
        place.mkdir(exist_ok=True)
        shutil.copy(rows, place / f"{name}.jsonl")
    options = ["--model", "tiny", "--root", shutil.copytree(tiny_awq.parent, tmp_path / "root")]
    train = ["finetune", "--data", place, *options, "--max-steps", 1, "--publish-anyway"]
    told = [cli("inspect", place, *options), cli("inspect", place, *options, "--dry-run"), cli(*train, "--dry-run"),
            cli(*train)]
    assert [done.err.count("2 of 3 files are not taken for training") for done in told] == [1] * 4
    assert "30 rows" in told[0].out and json.loads(cli(*train, "--dry-run", "--json").out)[0]["why"] == "up to date"


@pytest.mark.parametrize(("name", "content", "missing", "hint"), [
    ("rows.csv", "prompt,response\n", "only the line that names the columns", "each row is a line under it"),
    ("rows.jsonl", "\n \n", "nothing but blank lines", "a row is a line such as {"),
    ("rows.json", "[]", "a JSON array with nothing in it", "a row is a line such as {"),
    ("rows.csv", "", "the file is empty", "a row is a line such as {"),
])
def test_what_a_file_without_rows_lacks(cli, tmp_path, name, content, missing, hint):
    (tmp_path / name).write_text(content)
    done = cli("inspect", tmp_path / name, "--model", "tiny")
    assert done.code == 3 and f"no rows: {missing}\n" in done.err.replace("it is ", "") and f"try: {hint}" in done.err


def test_a_field_that_is_missing_is_said_once_with_those_that_are_there(cli, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", **{f"n{i}": i for i in range(9)}}) + "\n")
    (warning,) = json.loads(cli("inspect", path, "--model", "tiny", "--json").out)["warnings"]
    there = ", ".join(["prompt", *(f"n{i}" for i in range(7)), "…"])
    assert warning["message"] == f"no field 'response', nor another that means it; there are: {there}"


def test_a_folder_without_rows(cli, tmp_path):
    done = cli("inspect", tmp_path, "--model", "tiny")
    assert done.code == 3 and "no files of rows in it" in done.err


def test_a_data_set_that_is_not_here_is_not_fetched(cli):
    done = cli("inspect", "nobody/no-such-data", "--model", "tiny")
    assert (done.code, done.out) == (4, "")
    assert "not on this machine" in done.err and "hf download --repo-type dataset nobody/no-such-data" in done.err


def test_the_first_row_as_the_model_sees_it(cli, rows):
    done = cli("inspect", rows, "--model", "tiny")
    assert "<|user|>\nQuestion 0?<|end|>\n<|assistant|>\n⟦Answer 0.<|end|>⟧\n<|endoftext|>" in done.out
    assert "end of turn" in done.out and "JSON Lines" in done.out and "4 steps of 8 rows" in done.out


def test_a_long_row_is_shown_without_its_middle(cli, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Long?", "response": "word " * 1000 + "end."}) + "\n")
    done = cli("inspect", path, "--model", "tiny", "--rows", 0)
    assert "characters…] " in done.out and "end.<|end|>⟧" in done.out and len(done.out) < 6000


def following(done):
    """The commands that come next."""
    return [line.removeprefix("next: ") for line in done.err.splitlines() if line.startswith("next: ")]


def test_the_commands_that_come_next_are_ready_to_paste(cli, tmp_path, monkeypatch):
    path = tmp_path / "my rows.csv"
    path.write_text("frage,antwort\n" + "".join(f"Question {i}?,Answer {i}.\n" for i in range(9)))
    options = ["--model", "tiny", "--root", tmp_path / "root", "--map", "prompt=frage", "--map", "response=antwort",
               "--format", "prompt-response"]
    done = cli("inspect", path, *options)
    assert following(done) == [
        f"phicli quantize --model tiny --root {tmp_path}/root --format prompt-response --map prompt=frage "
        "--map response=antwort",
        f"phicli finetune --model tiny --root {tmp_path}/root --format prompt-response --map prompt=frage "
        f"--map response=antwort --data '{path}'"]
    path.write_text(path.read_text() + "Why?,a &amp; b\n")
    fix, finetune = json.loads(cli("inspect", path, *options, "--json").out)["commands"]
    clean = f"'{tmp_path}/my rows.clean.jsonl'"
    assert fix == (f"phicli inspect '{path}' --model tiny --root {tmp_path}/root --format prompt-response "
                   f"--map prompt=frage --map response=antwort --fix {clean}")
    assert finetune == (f"phicli finetune --model tiny --root {tmp_path}/root --format prompt-response "
                        f"--map prompt=frage --map response=antwort --data {clean}")
    assert following(cli("inspect", path, *options))[::2] == [fix, finetune]
    assert following(cli(*shlex.split(fix)[1:]))[-1] == finetune
    assert cli(*shlex.split(finetune)[1:], "--max-steps", 1).code == 4  # no quantized model, but nothing wrong with it


def test_a_file_that_is_mended_throughout_gets_the_command_for_it(cli, tmp_path):
    table, numbers = tmp_path / "latin.csv", tmp_path / "numbers.parquet"
    table.write_bytes("prompt,response\nCafé?,Drüben.\nKäse?,Auch drüben.\n".encode("cp1252"))
    pq.write_table(pa.table({"prompt": ["1 + 1?", "2 + 2?"], "response": [2, 4]}), numbers)
    for path in (table, numbers):
        command = f"phicli inspect {path} --model tiny --fix {path.with_suffix('.clean.jsonl')}"
        done = cli("inspect", path, "--model", "tiny")
        assert done.code == 3 and f"try: {command}\n" in done.err and "or: " in done.err
        mended = cli(*shlex.split(command)[1:])
        assert mended.code == 0 and following(mended)[-1].endswith(f"--data {path.with_suffix('.clean.jsonl')}")
        assert cli("inspect", path.with_suffix(".clean.jsonl"), "--model", "tiny", "--strict").code == 0
    report = json.loads(cli("inspect", table, "--model", "tiny", "--json").out)
    assert (report["rows"], report["bad_rows"], report["mendable_rows"]) == (0, 2, 2)


def test_held_out_rows_are_given_on(cli, rows, tmp_path):
    held_out = tmp_path / "held.jsonl"
    held_out.write_text(json.dumps(ROWS[3]) + "\n")
    done = cli("inspect", rows, "--model", "tiny", "--eval-data", held_out)
    assert "of 1 rows in" in done.out and "30 to train on" in done.out
    assert following(done)[-1].endswith(f"--data {rows} --eval-data {held_out}")
    held_out.write_bytes(b"PK\x03\x04")
    done = cli("inspect", rows, "--model", "tiny", "--eval-data", held_out)
    assert done.code == 0 and "held-out rows are not compared" in done.err and "27 to train on" in done.out


def test_one_file_for_both_is_a_finding(cli, rows):
    done = cli("inspect", rows, "--model", "tiny", "--eval-data", rows, "--strict")
    assert done.code == 3 and "held_out (30)" in done.err
    assert "of 30 rows in" in done.out and "30 are here too" in done.out
    assert "the file that is inspected is the one of held-out rows too" in done.err
    assert "held_out" not in cli("inspect", "data/data_eval_travel.jsonl", "--model", "tiny").out  # nobody named it


@pytest.mark.parametrize(("more", "code"), [
    ({}, 0), ({"source": "web"}, 0), ({"response": "Answer &amp; more."}, 3), ({"prompt": 5}, 3),
])
def test_strict(cli, rows, more, code):
    with rows.open("a") as file:
        file.write(json.dumps({"prompt": "Question?", "response": "Answer.", **more}) + "\n")
    assert cli("inspect", rows, "--model", "tiny").code == 0
    done = cli("inspect", rows, "--model", "tiny", "--strict", "--json")
    assert done.code == code and json.loads(done.out)["rows"] >= 30
    assert ("findings: " in done.err) == (code == 3)
    assert code == 0 or done.err.count("--model") == 1  # of the command that helps


CALL = {"messages": [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": None, "tool_calls": [
    {"type": "function", "function": {"name": "oil", "arguments": "{}"}}]}]}


def test_what_is_proposed_is_what_finetune_takes(cli, tiny_awq, rows, tmp_path):
    """Of rows with calls of tools, which the built-in model's chat template does not show."""
    with rows.open("a") as file:
        file.write(json.dumps(CALL) + "\n")
    options = ["--model", "tiny", "--root", shutil.copytree(tiny_awq.parent, tmp_path / "root")]
    fix, finetune = following(cli("inspect", rows, *options))
    strict = cli("inspect", rows, *options, "--strict")
    assert strict.code == 3 and f"try: {fix}" in strict.err
    fixed = cli(*shlex.split(fix)[1:])
    assert "not_laid_out" in fixed.out and following(fixed) == [finetune]
    assert cli(*shlex.split(finetune)[1:], "--max-steps", 1, "--publish-anyway").code == 0


def test_no_training_is_proposed_where_finetune_refuses_the_layout(cli, tiny_awq, rows, tmp_path):
    chatml = tmp_path / "chatml.jinja"
    chatml.write_text("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    options = ["--model", "tiny", "--root", shutil.copytree(tiny_awq.parent, tmp_path / "root")]
    for own in (["--text-template", "Q: {prompt} A: {response}"], ["--chat-template", chatml]):
        done = cli("inspect", rows, *options, *own)
        assert done.code == 0 and "other_layout" in done.out and following(done) == []
        strict = cli("inspect", rows, *options, *own, "--strict")
        refused = cli("finetune", "--data", rows, *options, *own)
        assert (strict.code, refused.code) == (3, 3) and "laid out as chat lays them out" in refused.err
        assert ("try: leave --text-template out" in refused.err) == (own[0] == "--text-template")
        assert "--force-template" in refused.err and "phicli finetune" not in strict.err


def test_ctrl_c_ends_all_processes(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for at in range(0, 400_000, len(ROWS)):
            file.writelines(json.dumps({**row, "number": at}) + "\n" for row in ROWS)
    with subprocess.Popen([sys.executable, "-m", "phicli", "inspect", str(path), "--model", "tiny"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "2"}) as started:  # so many processes
        main, workers = psutil.Process(started.pid), []
        while len(workers) < 2 and started.poll() is None:
            workers = main.children(recursive=True)
            time.sleep(0.05)
        main.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (130, "") and "Traceback" not in err
    assert psutil.wait_procs(workers, timeout=10)[1] == []


@pytest.mark.parametrize(("content", "hint"), [
    ('{"frage": "a", "antwort": "b"}\n', "--map prompt=FIELD"),
    ('[{"prompt": "a",\n"response" "b"}]\n', "mend the file there"),
    ("first,second\na,b\n", "--map prompt=first --map response=second"),
])
def test_no_row_that_can_be_used_shows_the_report_and_ends_with_3(cli, tmp_path, content, hint):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    done = cli("inspect", path, "--model", "tiny", "--json")
    assert done.code == 3
    assert json.loads(done.out)["rows"] == 0
    assert "no row can be used" in done.err and hint in done.err


@pytest.mark.parametrize(("flags", "code", "message"), [
    (["--text-template", "no field"], 3, "needs fields"),
    (["--model", "./nowhere"], 3, "no such model folder"),
    (["--max-tokens", "0"], 2, "at least 1"),
    (["--rows", "-1"], 2, "at least 0"),
])
def test_wrong_options(cli, rows, flags, code, message):
    done = cli("inspect", rows, *flags)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
