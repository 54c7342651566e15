"""`phicli run` and the rules that hold for every command, through the real main() and as real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phicli.cli import COMMANDS
from phicli.stages import read_manifest

DATA = Path(__file__).parent.parent / "data"
SMALL = {
    "PHICLI_QUANTIZE_SAMPLES": "8", "PHICLI_QUANTIZE_SEQ_LEN": "128", "PHICLI_EVALUATE_ROWS": "4",
    "PHICLI_CHAT_MAX_NEW_TOKENS": "8", "PHICLI_FINETUNE_LORA_R": "4",
}
HEAVY = ("torch", "olive", "azure", "transformers", "onnxruntime", "onnxruntime_genai", "peft")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return tmp_path_factory.mktemp("lab")


def run_lab(cli, monkeypatch, root, *more):
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    return cli("run", "--model", "tiny", "--root", root, "--data", DATA / "data_sample_travel.jsonl",
               "--eval-data", DATA / "data_eval_travel.jsonl", "--max-steps", "2", "--device", "cpu", *more)


def test_whole_lab_then_nothing_left_to_do_then_only_what_changed(cli, monkeypatch, lab):
    done = run_lab(cli, monkeypatch, lab, "--json")
    assert done.code == 0, done.err
    steps = {step["name"]: step for step in json.loads(done.out)}
    assert list(steps) == ["inspect", "quantize", "finetune", "optimize", "evaluate", "chat"]
    assert all(step["state"] == "made" for step in steps.values())
    assert (lab / "onnx-ao" / "adapters" / "travel.onnx_adapter").is_file()
    evaluation = json.loads((lab / "evaluation.json").read_text())
    assert next(s["stage"] for s in evaluation["stages"] if not s["missing"]) == "original"

    again = run_lab(cli, monkeypatch, lab)
    assert again.code == 0 and again.err.count("is up to date") == 4
    assert [line for line in again.out.splitlines() if "quantize" in line and "up to date" in line]

    monkeypatch.setenv("PHICLI_FINETUNE_SEED", "1")  # no such setting: environment names that are unknown do nothing
    quantized = read_manifest(lab / "awq").created
    changed = run_lab(cli, monkeypatch, lab, "--seed", "1", "--json")
    states = {step["name"]: step["state"] for step in json.loads(changed.out)}
    assert states["quantize"] == states["finetune"] == states["optimize"] == states["evaluate"] == "made"
    assert "changed setting seed" in changed.err and read_manifest(lab / "awq").created != quantized


def test_wrong_input_of_a_step_stops_there(cli, monkeypatch, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    done = run_lab(cli, monkeypatch, tmp_path / "root", "--data", tmp_path / "rows.jsonl")
    assert done.code == 3 and not done.out
    assert not (tmp_path / "root" / "ft").exists()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick_and_imports_nothing_heavy(command):
    arguments = [command, "--help"] if command else ["--help"]
    code = (
        "import sys; from phicli.cli import main; "
        f"code = main({arguments!r}); "
        f"bad = [m for m in {HEAVY!r} if m in sys.modules]; "
        "sys.exit(code or (f'imported {bad}' if bad else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: phicli" in done.stdout


def test_version_and_usage_errors(cli):
    from phicli import __version__

    assert cli("--version").out.strip() == __version__
    assert cli("quantise").code == 2
    assert cli("quantize", "--no-such-option").code == 2
    assert cli("--config", "nope.toml", "config").code == 3


def test_reader_that_goes_away_is_no_error(tmp_path):
    command = f"{sys.executable} -m phicli config | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[-1] == "0" and "Traceback" not in done.stderr


def test_no_unicode_terminal(tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "phicli", "config"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=env, timeout=60)
    assert done.returncode == 0 and done.stdout.isascii()


def test_traceback_only_when_asked_for(cli, tmp_path):
    plain = cli("quantize", "--model", tmp_path / "nothing")
    full = cli("--traceback", "quantize", "--model", tmp_path / "nothing")
    assert plain.code == full.code == 3
    assert "Traceback" not in plain.err and "Traceback" in full.err
