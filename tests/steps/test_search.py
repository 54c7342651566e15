"""`phicli search`: what is tried next, what a kill leaves, limits, the front, and the model that is built."""

import itertools
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from phicli.artifacts.stages import read_sealed
from phicli.steps.choosing import Limits, best_of, front_of, next_settings

FEW = {"PHICLI_QUANTIZE_SAMPLES": "4", "PHICLI_QUANTIZE_SEQ_LEN": "128", "PHICLI_FINETUNE_MAX_STEPS": "2"}
# Size in MB and KL of the built-in model, as `python benchmarks/search.py` measured all twelve.
GRID = {
    ("awq", 128, "int8"): (4.715, 0.2629), ("awq", 128, "int4"): (3.863, 0.3425), ("awq", 32, "int8"): (5.074, 0.1747),
    ("awq", 32, "int4"): (4.222, 0.2556), ("rtn", 128, "int8"): (4.715, 0.2944), ("rtn", 128, "int4"): (3.863, 0.3654),
    ("rtn", 32, "int8"): (5.074, 0.1911), ("rtn", 32, "int4"): (4.222, 0.271), ("kquant", 128, "int8"): (4.715, 0.2964),
    ("kquant", 128, "int4"): (3.863, 0.3693), ("kquant", 32, "int8"): (5.074, 0.1915),
    ("kquant", 32, "int4"): (4.222, 0.2726)}


def measured(settings):
    size, kl = GRID[tuple(settings.values())]
    return {"settings": settings, "size": size * 1e6, "kl": kl, "perplexity": None, "speed": None}


@pytest.mark.parametrize("limits", [Limits(), Limits(size=4.3e6), Limits(size=4.8e6), Limits(size=3.9e6, kl=0.4)])
def test_the_best_of_twelve_in_at_most_six(limits):
    """Whatever is tried first."""
    names = ("algorithm", "group_size", "head")
    everything = [measured(dict(zip(names, values, strict=True))) for values in GRID]
    best = everything[best_of(everything, limits, "kl")]["settings"]
    for orders in itertools.product(*(itertools.permutations(dict.fromkeys(axis)) for axis in zip(*GRID, strict=True))):
        axes, trials = dict(zip(names, orders, strict=True)), []
        while best not in [trial["settings"] for trial in trials] and len(trials) < 12:
            trials.append(measured(next_settings(axes, trials, limits, "kl", seed=0)))
        assert len(trials) <= 6, orders


def test_all_of_a_grid_once_and_then_nothing():
    axes, trials = {"algorithm": ("awq", "rtn", "kquant"), "group_size": (32,), "head": ("int4", "int8")}, []
    while settings := next_settings(axes, trials, Limits(kl=0.2), "size", seed=1):
        trials.append(measured(settings))
    assert len(trials) == 6 == len({tuple(trial["settings"].values()) for trial in trials})


def test_the_front():
    trials = [{"size": s, "kl": k, "speed": v} for s, k, v in (
        (1, 9, 5), (2, 8, 5), (2, 9, 5), (2, 8, 5), (9, 1, 1), (9, 2, 7), (9, 2, None))]
    assert front_of(trials, Limits(), ("size", "kl", "speed")) == {0, 1, 4, 5}
    assert front_of(trials, Limits(size=5, speed=5), ("size", "kl")) == {0, 1}
    assert best_of([{**trial, "settings": {}} for trial in trials], Limits(size=5), "kl") == 1
    assert best_of([{**trial, "settings": {}} for trial in trials], Limits(kl=0.5), "kl") is None


@pytest.fixture
def command(finished_lab, tmp_path, monkeypatch):
    for name, value in FEW.items():
        monkeypatch.setenv(name, value)
    return ["search", "--model", "tiny", "--root", tmp_path / "root", "--algorithm", "rtn", "--group-size", "32",
            "--head", "int4,int8", "--rows", "2", "--eval-data", finished_lab / "questions.jsonl", "--data",
            finished_lab / "rows.jsonl", "--device", "cpu"]


def test_a_killed_search_goes_on_and_builds_the_best(cli, forks, command, tmp_path):
    """With adapters; killed as soon as one trial is written, then limits and values that take its figures along."""
    command += ["--lora-r", "2", "--max-size", "1TB", "--json"]
    file = tmp_path / "root" / "search" / "search.json"
    process = forks.start(*command, cwd=Path.cwd(), out=tmp_path / "killed", env=dict(os.environ))
    until = time.monotonic() + 120
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    assert forks.wait(process) == -9
    before = read_sealed(file, "")["trials"]
    assert len(before) == 1
    done = cli(*command)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    first, second = document["trials"]
    figures = ("settings", "size", "speed", "kl", "perplexity", "seconds")
    assert [first[name] for name in figures] == [before[0][name] for name in figures]
    assert (first["settings"]["head"], second["settings"]["head"]) == ("int4", "int8")
    assert second["size"] > first["size"]
    assert Path(document["path"]).is_dir() and (Path(document["path"]) / "adapters" / "travel.onnx_adapter").is_file()
    assert not (tmp_path / "root" / "search" / "trial").exists()

    none = cli(*command[:-2], "1KB", "--json")
    assert none.code == 6 and json.loads(none.out)["path"] is None and not Path(document["path"]).exists()
    small = cli(*command[:-2], f"{first['size']}B", "--json")
    again = json.loads(small.out)
    assert [trial["outside"] for trial in again["trials"]] == ["", "size"] and again["trials"][0]["best"]
    assert [trial["seconds"] for trial in again["trials"]] == [first["seconds"], second["seconds"]]
    page = cli("report", "--root", tmp_path / "root", "--model", "tiny", "--format", "markdown")
    assert page.code == 0, page.err
    remarks = re.findall(r"\| ([a-z: ]+) \|\n", Path(page.out.strip()).read_text())
    assert {"best", "outside: size"} <= set(remarks)

    root = tmp_path / "root"
    last = json.loads(cli("status", "--root", root, "--model", "tiny", "--json").out)[-1]
    assert (last["step"], last["state"]) == ("search", "done") and last["why"].startswith("2 trials, the best: ")
    (root / "search" / "notes.txt").write_text("mine")
    assert cli("rm", f"{root}/search", "--yes").code == 0
    assert [path.name for path in (root / "search").iterdir()] == ["notes.txt"]


def test_what_cannot_be(cli, command, tmp_path):
    assert cli(*command, "--max-size", "many").code == 2
    assert cli(*command[:-2], "--lora-r", "zero").code == 2
    assert cli(*command, "--kv-cache", "int2").code == 2
    impossible = [text if text != "32" else "48" for text in command]  # of which nothing can be made
    done = cli(*impossible, "--json")
    trials = json.loads(done.out)["trials"]
    assert done.code == 6 and "no trial keeps to the limits" in done.err
    assert len(trials) == 2 and all("power of two" in trial["outside"] for trial in trials)
