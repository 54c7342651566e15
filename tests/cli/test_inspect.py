"""`phicli inspect` as a user meets it: exit codes, streams, messages."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

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
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert json.loads(done.stdout)["tokens"] is None
    assert "tokens are left out" in done.stderr and "--model tiny" in done.stderr


def test_fix(cli, dirty, tmp_path):
    out = tmp_path / "clean.jsonl"
    done = cli("inspect", dirty, "--model", "tiny", "--fix", out)
    assert done.code == 0
    assert "left out" in done.out and "changed" in done.out and str(out.name) in done.out
    report = json.loads(cli("inspect", out, "--model", "tiny", "--json").out)
    assert report["rows"] == 29
    assert [warning["code"] for warning in report["warnings"]] == ["special_token"]


def test_fix_over_the_input_is_a_usage_error(cli, rows):
    before = rows.read_bytes()
    done = cli("inspect", rows, "--model", "tiny", "--fix", rows)
    assert (done.code, done.out) == (2, "")
    assert rows.read_bytes() == before


@pytest.mark.parametrize(("content", "message"), [
    (None, "no such file"), (b"", "no rows"), (b"PAR1\0\0", "Parquet"), (b"\x89PNG\r\n\0\0", "binary"),
    (gzip.compress(b"{}" * 50)[:-9], "truncated"),
])
def test_unusable_files(cli, tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    done = cli("inspect", path, "--model", "tiny", "--fix", tmp_path / "out.jsonl")
    assert (done.code, done.out) == (3, "")
    assert message in done.err and str(path) in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_folder(cli, tmp_path):
    done = cli("inspect", tmp_path, "--model", "tiny")
    assert done.code == 3 and "folder" in done.err


@pytest.mark.parametrize(("content", "hint"), [
    ('{"frage": "a", "antwort": "b"}\n', "--map prompt=FIELD"),
    ('[{"prompt": "a",\n"response" "b"}]\n', "one complete JSON object"),
    ("first,second\na,b\n", "--map prompt=FIELD"),
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
