"""`phicli run` and the rules that hold for every command, through the real main() and as real processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from phicli.artifacts.stages import read_manifest
from phicli.cli.main import COMMANDS

DATA = Path(__file__).parents[2] / "data"
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
    return cli("run", *options(root, more))


def options(root, more):
    """The lab's options, those in `more` in place of others."""
    usual = {"--model": "tiny", "--root": root, "--data": DATA / "data_sample_travel.jsonl",
             "--eval-data": DATA / "data_eval_travel.jsonl", "--max-steps": "2", "--device": "cpu"}
    return [*(part for name, value in usual.items() if name not in more for part in (name, value)), *more]


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

    quantized = read_manifest(lab / "awq").created
    changed = run_lab(cli, monkeypatch, lab, "--seed", "1", "--json")
    states = {step["name"]: step["state"] for step in json.loads(changed.out)}
    assert states["quantize"] == states["finetune"] == states["optimize"] == states["evaluate"] == "made"
    assert "changed setting seed" in changed.err and read_manifest(lab / "awq").created != quantized


def states(cli, monkeypatch, root, *more):
    """step -> state and why, by `status` with the settings of `run_lab`."""
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    done = cli("status", *options(root, ("--json", *(() if "--seed" in more else ("--seed", "1")), *more)))
    assert done.code == 0, done.err
    return {link["step"]: f"{link['state']}: {link['why']}" for link in json.loads(done.out)}


def test_status_says_what_run_would_do(cli, monkeypatch, lab, tmp_path):
    """On the lab that the test above leaves."""
    now = states(cli, monkeypatch, lab)
    assert now.pop("data") == "up to date: 400 rows"
    assert list(now) == ["quantize", "finetune", "optimize", "evaluate"] and set(now.values()) == {"up to date: "}
    after = {"optimize": "stale: after finetune travel", "evaluate": "stale: after finetune travel"}
    rows = (DATA / "data_sample_travel.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:-1]))
    changed = states(cli, monkeypatch, lab, "--data", tmp_path / "rows.jsonl")
    assert changed == {"data": "up to date: 399 rows", "quantize": "up to date: ",
                       "finetune": "stale: changed input data", **after}
    changed = states(cli, monkeypatch, lab, "--max-steps", "3")
    assert changed["finetune"] == "stale: changed setting max_steps (2, now 3)"
    assert changed["optimize"] == after["optimize"]
    assert changed["quantize"] == "up to date: "
    assert states(cli, monkeypatch, lab, "--seed", "2")["quantize"] == "stale: changed setting seed (1, now 2)"
    changed = states(cli, monkeypatch, lab, "--eval-data", tmp_path / "rows.jsonl")
    assert changed["evaluate"] == "stale: changed input eval_data" and changed["optimize"] == "up to date: "

    weights = lab / "awq" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000] + b"\0" + whole[1001:])
    broken = states(cli, monkeypatch, lab)
    assert broken["quantize"] == "broken: model.safetensors has other content than the step wrote"
    assert broken["finetune"] == broken["optimize"] == broken["evaluate"] == "stale: after quantize"
    refused = run_lab(cli, monkeypatch, lab, "--seed", "1", "--until", "inspect")
    assert refused.code == 0 and "quantize" not in refused.out
    weights.write_bytes(whole)
    table = cli("status", "--model", "tiny", "--root", lab)
    assert table.code == 0 and "changed setting" in table.out
    assert states(cli, monkeypatch, tmp_path / "none")["quantize"] == "not made: "
    assert states(cli, monkeypatch, tmp_path / "none", "--model", "who/knows")["quantize"].startswith("not made: who/")
    assert not (tmp_path / "none").exists()


def test_after_status_run_trains_the_adapter_that_is_there_on_its_own_rows(cli, monkeypatch, lab, tmp_path):
    """Of a copied lab with another adapter; what is asked for counts before what was."""
    root, rows = tmp_path / "copy", str(DATA / "data_sample_travel.jsonl")
    shutil.copytree(lab, root)
    (root / "ft" / "travel").rename(root / "ft" / "faq")
    monkeypatch.setenv("PHICLI_QUANTIZE_SEQ_LEN", "64")  # so that all is stale
    monkeypatch.chdir(tmp_path)
    found = cli("status", "--root", root).err.splitlines()[-1]
    assert found == f"next: phicli run --root {root} --name faq --data {rows} --max-steps 2"
    asked = cli("status", "--root", root, "--name", "faq", "--max-steps", "3").err.splitlines()[-1]
    assert asked == f"next: phicli run --root {root} --name faq --max-steps 3"
    assert cli("status", "--root", root, "--name", "new").err.splitlines()[-1].endswith(f"--root {root} --name new")


def test_status_looks_at_the_rows_that_an_adapter_was_trained_on(cli, monkeypatch, lab, tmp_path):
    """Several files, of which one counts twice, with names of their own: changed, and then gone."""
    root, files = tmp_path / "copy", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    shutil.copytree(lab, root)
    shutil.rmtree(root / "ft")
    for file in files:
        file.write_text("".join(json.dumps({"f": f"{i} {file.name}?", "a": "Yes."}) + "\n" for i in range(8)))
    monkeypatch.chdir(tmp_path)
    for name, value in {**SMALL, "PHICLI_SEED": "1"}.items():  # as the lab was made
        monkeypatch.setenv(name, value)
    named = ["--map", "prompt=f", "--map", "response=a"]
    done = cli("finetune", "--root", root, "--name", "own", "--data", "a.jsonl", "--data", "b.jsonl:2", *named,
               "--max-steps", "1", "--device", "cpu", "--publish-anyway")
    assert done.code == 0, done.err

    def own(*more):
        found = cli("status", "--root", root, "--json", *more)
        state = next(one for one in json.loads(found.out) if one["place"].endswith("own"))
        return f"{state['state']}: {state['why']}", found.err.splitlines()[-1].removeprefix("next: ")

    assert own()[0] == "up to date: "
    assert [one for one in json.loads(cli("status", "--root", root, "--json").out) if one["step"] == "data"] == [
        {"step": "data", "state": "up to date", "why": "24 rows", "place": "a.jsonl, b.jsonl:2", "made": "",
         "bytes": sum(file.stat().st_size for file in files)}]
    files[1].write_text(files[0].read_text())
    state, after = own()
    assert state == "stale: changed input data 2"
    assert after == (f"phicli run --root {root} --seed 1 --name own --data {files[0]} --data {files[1]}:2 "
                     "--map prompt=f --map response=a --max-steps 1")
    files[0].unlink()
    assert own() == (state, f"phicli verify --root {root} {root / 'ft' / 'own'}")
    assert own("--data", files[1])[0] == state


def test_status_tells_the_rows_of_each_adapter_and_those_that_are_asked_for(cli, monkeypatch, lab, tmp_path):
    """Of a copied lab with two adapters on the same rows, and then with rows given."""
    root, rows = tmp_path / "copy", tmp_path / "rows.jsonl"
    shutil.copytree(lab, root)
    rows.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    monkeypatch.chdir(tmp_path)

    def told(*more):
        found = json.loads(cli("status", "--root", root, "--json", *more).out)
        return [(one["why"], Path(one["place"]).name) for one in found if one["step"] == "data"]

    lab_rows = ("400 rows", "data_sample_travel.jsonl")
    (root / "ft" / "travel").rename(root / "ft" / "faq")
    shutil.copytree(root / "ft" / "faq", root / "ft" / "more")
    assert told() == [lab_rows]
    assert told("--data", rows) == [("1 rows", "rows.jsonl"), lab_rows]


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_quantized_model_is_refused_before_the_first_step(cli, monkeypatch, lab, tmp_path, dry):
    done = run_lab(cli, monkeypatch, tmp_path / "root", "--model", lab / "awq", *dry)
    assert done.code == 3 and "is quantized already (awq)" in done.err and "inspect: made" not in done.err
    assert f"   or: phicli finetune --model {lab / 'awq'}" in done.err


def test_from_and_until(cli, monkeypatch, lab):
    def what(*flags):
        done = run_lab(cli, monkeypatch, lab, "--seed", "1", "--json", *flags)
        return done.code, {s["name"]: s["state"] for s in json.loads(done.out)} if done.out else done.err

    assert what("--until", "optimize") == (0, {"inspect": "made", "quantize": "up to date", "finetune": "up to date",
                                               "optimize": "up to date"})
    assert what("--from", "optimize", "--until", "optimize")[1]["optimize"] == "made"
    code, message = what("--from", "optimise")
    assert code == 2 and "inspect, quantize, finetune" in message and "did you mean 'optimize'" in message
    code, message = what("--from", "chat", "--until", "finetune")
    assert code == 2 and "--from chat comes after --until finetune" in message


def test_status_needs_no_torch():
    code = ("import sys; from phicli.cli.main import main; main(['status', '--model', 'tiny', '--root', sys.argv[1]]); "
            f"sys.exit(', '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)")
    done = subprocess.run([sys.executable, "-c", code, "/nowhere"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_wrong_input_of_a_step_stops_there(cli, monkeypatch, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    done = run_lab(cli, monkeypatch, tmp_path / "root", "--data", tmp_path / "rows.jsonl")
    assert done.code == 3 and not done.out
    assert not (tmp_path / "root" / "ft").exists()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick_and_imports_nothing_heavy(command):
    arguments = [command, "--help"] if command else ["--help"]
    code = (
        "import sys; from phicli.cli.main import main; "
        f"code = main({arguments!r}); "
        f"bad = [m for m in {('rich', *HEAVY)!r} if m in sys.modules]; "
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


def test_an_adapter_that_no_slot_holds_goes_into_the_weights(cli, monkeypatch, lab):
    monkeypatch.setenv("PHICLI_FINETUNE_METHOD", "lokr")
    done = run_lab(cli, monkeypatch, lab, "--name", "other", "--json")
    assert done.code == 0, done.err
    places = {step["name"]: step["place"] for step in json.loads(done.out)}
    assert places["optimize"] == str(lab / "onnx-ao-other") and places["chat"] == "other, in the weights"
