"""`phicli benchmark` through the real main(), with real processes, and what it makes of what they measure."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest

from phicli.benchmarking.figures import compare, rows_of, verdict
from phicli.benchmarking.formats import written
from phicli.benchmarking.turn import WARM, Case, Turn
from phicli.benchmarking.turns import Series, take_turns
from phicli.errors import BadInput

SMALL = ("--prompt-tokens", "8", "--new-tokens", "14", "--rounds", "3", "--device", "cpu")
LLAMA_BENCH = {"build_commit", "cpu_info", "gpu_info", "backends", "model_filename", "model_type", "model_size",
               "model_n_params", "n_threads", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns",
               "avg_ts", "stddev_ts"}


@pytest.fixture(scope="module")
def measured(two_graphs, tmp_path_factory):
    """The document of one run, as it was written and printed."""
    from phicli.cli.main import main

    file = tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    assert main(["benchmark", "--root", str(two_graphs), "--output", str(file), "--adapter", "travel", "--depth", "0,5",
                 "--against", f"genai={two_graphs / 'onnx-ao'}", *SMALL]) == 0
    return file, json.loads(file.read_text())["rows"]


def test_every_contender_in_every_case(measured, two_graphs):
    _, rows = measured
    cases = [(0, 8, 0), (8, 0, 14), (5, 8, 0), (13, 0, 14)]
    assert [(row["contender"], row["n_depth"], row["n_prompt"], row["n_gen"]) for row in rows] == [
        (name, *case) for pair in (cases[:2], cases[2:]) for name in ("phicli", "phicli + travel", "genai")
        for case in pair]
    for row in rows:
        turns = len(row["samples_ts"])
        assert row.keys() >= LLAMA_BENCH and turns == (6 if row["contender"] == "phicli" else 3)
        assert row["avg_ts"] == pytest.approx(np.mean(row["samples_ts"])) and row["peak_memory"] > 5e6
        tokens = row["n_prompt"] or row["n_gen"]
        assert row["samples_ts"][0] == pytest.approx(tokens * 1e9 / row["samples_ns"][0], rel=1e-3)
        known, unknown = ("ttft", "itl") if row["n_prompt"] else ("itl", "ttft")
        assert 0 < row[f"median_{known}_ms"] <= row[f"p95_{known}_ms"] and row[f"mean_{unknown}_ms"] is None
        assert (row["share"] is None) == (row["contender"] == "phicli") and row["load_ms"] > 1
    genai, plain = ([row for row in rows if row["contender"] == name][1] for name in ("genai", "phicli"))
    assert genai["share_interval"][0] <= genai["share"] <= genai["share_interval"][1]
    assert plain["adapter"] is None and plain["model_size"] > 1e6


def test_the_forms_of_llama_bench(measured):
    _, rows = measured
    table = list(csv.DictReader(io.StringIO(written(rows, "csv"))))
    assert table[0].keys() >= LLAMA_BENCH and len(table) == len(rows)
    assert [float(line["avg_ts"]) for line in table] == [row["avg_ts"] for row in rows]
    assert json.loads(written(rows, "json")) == rows == [json.loads(x) for x in written(rows, "jsonl").split("\n")]
    lines = written(rows, "md").splitlines()
    assert lines[0].startswith("| model | size | params | backend | threads | test | t/s |")
    assert [line.split(" | ")[5] for line in lines[2:4]] == ["pp8", "tg14 @ d8"] and len(lines) == 2 + len(rows)


def test_a_baseline_and_what_is_left_out(cli, measured, two_graphs, tmp_path, monkeypatch):
    file, _ = measured
    monkeypatch.setenv("PATH", "")
    done = cli("benchmark", "--root", two_graphs, "--output", tmp_path / "new.json", "--adapter", "travel",
               "--against", "llama.cpp", "--baseline", file, "--threads", "1", *SMALL)
    assert done.code == 0, done.err
    assert "llama.cpp is left out: neither llama-bench" in done.err and "tokens/s" in done.out
    rows = json.loads((tmp_path / "new.json").read_text())["rows"]
    assert all(row["n_threads"] == 1 and row.get("change", 1) > 0 for row in rows)
    theirs = tmp_path / "theirs.json"
    theirs.write_text("{}")
    common = ("benchmark", "--root", two_graphs, *SMALL)
    assert cli(*common, "--output", theirs).code == 3 and theirs.read_text() == "{}"
    assert cli(*common, "--adapter", "paris").code == 3
    assert cli(*common, "--prompt-tokens", "0").code == cli(*common, "--against", "vllm").code == 2
    assert cli("benchmark", "--root", tmp_path).code == 4
    too_long = cli("benchmark", "--root", two_graphs, "--output", tmp_path / "x.json", *SMALL, "--depth", "999999")
    assert too_long.code == 3 and "context" in too_long.err and "--depth" in too_long.err, too_long.err
    too_long = cli("benchmark", "--root", two_graphs, "--output", tmp_path / "x.json", *SMALL, "--prompt-tokens",
                   "9999")
    assert too_long.code == 3, too_long.err
    assert re.search(r"try: phicli benchmark .*--prompt-tokens \d+\n", too_long.err), too_long.err


def test_a_damaged_model_to_compare_with_is_told_with_its_folder_and_what_helps(cli, two_graphs, tmp_path):
    whole, plain, damaged = (tmp_path / name for name in ("whole", "plain", "damaged"))
    for folder in (whole, plain):
        shutil.copytree(two_graphs / "onnx-ao", folder)
        (folder / "base.onnx").write_text("")
        (folder / "model.onnx").write_text("no graph")
    (plain / "phicli.json").unlink()  # so that the library itself finds out
    shutil.copytree(two_graphs / "awq", damaged)
    (damaged / "config.json").write_text("{")
    for given, said in (
            (f"genai={whole}", "is truncated"), (f"genai={plain}", "genai cannot run it: RuntimeError: "),
            (f"genai={damaged}", "no ONNX model there"), (f"genai={tmp_path / 'none'}", "no such folder"),
            (f"torch={damaged}", "config.json"), (f"torch={tmp_path / 'none'}", "no such folder")):
        name, _, folder = given.partition("=")
        done = cli("benchmark", "--path", two_graphs / "onnx-ao", "--adapter", "travel", "--against", given, *SMALL)
        (told,) = (line for line in done.err.splitlines() if "is left out" in line)
        assert done.code == 0 and told.startswith(f"warning: {name} is left out: {folder}") and said in told, told
        assert f"; --against {name} alone takes " in told and "{" not in told


class Steady:
    """A contender of a known speed, which the machine's own changes."""

    def __init__(self, seconds: float, machine: list[float], fails: bool = False):
        self.seconds, self.machine, self.fails = seconds, machine, fails

    def turn(self, case: Case) -> Turn:
        if self.fails:
            raise BadInput("no room")
        slow = self.machine.pop(0) if self.machine else 1.0
        return Turn(slow * self.seconds, (slow * self.seconds,) * (case.new - 1))


def test_shares_do_not_depend_on_a_machine_that_slows_down():
    machine = list(np.linspace(1, 3, 40))
    turners = {"a": Steady(1.0, machine), "b": Steady(2.0, machine), "c": Steady(1.0, machine, fails=True)}
    found = {name: series for name, _, series in take_turns(turners, [Case(1, 4)], 8)}
    assert found.keys() == {"a", "b"} and len(found["b"].turns) == 8
    row = rows_of(found["b"], Case(1, 4), {})[1]
    assert row["share"] == pytest.approx(0.5, rel=0.01) and row["stddev_ts"] > 0.03


def test_a_change_beyond_noise():
    def rows(*rates):
        series = Series([Turn(0.1, (1 / rate,) * 20) for rate in rates])
        return rows_of(series, Case(4, 21), {"engine": "phicli", "adapter": None, "n_threads": 1})

    assert len(Turn(0.1, (1.0,) * 20).counted) == 20 - WARM
    old, same, faster = rows(100, 104, 97, 101, 99), rows(102, 96, 99, 103, 98), rows(121, 119, 124, 118, 120)
    for new, said in ((same, "no change beyond noise"), (faster, "faster")):
        compare(new, old)
        assert verdict(new[1]) == said and new[1]["baseline_ts"] == pytest.approx(100)
    assert faster[1]["change"] == pytest.approx(1.2) and faster[1]["change_interval"][0] > 1.1
    other = rows(100, 100)
    compare(other, [{**old[1], "n_threads": 2}])
    assert "change" not in other[1]


@pytest.mark.gpu
def test_the_memory_of_a_gpu(cli, tiny, tmp_path):
    from phicli import optimize

    optimize("tiny", root=tmp_path, base=str(tiny), device="cuda", adapters=[])
    done = cli("benchmark", "--root", tmp_path, "--device", "cuda", "--rounds", "1", "--against", f"torch={tiny}",
               "--json")
    rows = json.loads(done.out)["rows"]
    assert done.code == 0 and {row["engine"] for row in rows} == {"phicli", "torch"}
    assert all(row["peak_gpu_memory"] > 1e6 and row["gpu_info"] for row in rows)
