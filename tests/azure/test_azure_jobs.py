"""Steps as jobs in Azure ML: the real SDK, and the job's own command run on this machine."""

import itertools
import json
import os
import re
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from azure_work import Worker

from phicli.artifacts.stages import check_whole, publishing, read_manifest
from phicli.azure.job_order import ROOT, unpacked
from phicli.azure.job_results import fetch_results
from phicli.azure.jobs import get
from phicli.azure.on_compute import COPYING, mirror
from phicli.azure.target import Target
from phicli.azure.workspace import Workspace
from phicli.config.azure import TransferConfig
from phicli.errors import Missing
from phicli.progress import SILENT
from phicli.steps.inventory import size_on_disk

ELSEWHERE = ("--on", "azureml", "--compute", "cpus")
QUANTIZE = ("quantize", "--model", "tiny", "--samples", "2", "--seq-len", "64", *ELSEWHERE)


@pytest.fixture
def worker(cloud, tmp_path, monkeypatch):
    for name, value in zip(("WORKSPACE_NAME", "RESOURCE_GROUP", "SUBSCRIPTION"), cloud.target[1::2], strict=True):
        monkeypatch.setenv(f"PHICLI_AZURE_{name}", value)
    worker = Worker(cloud, tmp_path / "machines")
    yield worker
    worker.end()


def begun(cloud) -> int:
    return sum(line.startswith("PUT") and "/jobs/" in line for line in cloud.azure.log)


def workspace_of(cloud) -> Workspace:
    return Workspace(Target(*reversed(cloud.target[1::2])), TransferConfig())


def test_a_step_elsewhere_ends_up_in_the_root_as_if_made_here(worker, cloud, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("PHICLI_QUANTIZE_ROUNDING", "nearest")  # settings of this machine hold there too
    worker.gate.clear()
    name = cli(*QUANTIZE, "--no-wait").out.strip()
    assert name in cli("jobs", "list").out and list(cloud.azure.jobs) == [name]
    worker.gate.set()
    done = cli(*QUANTIZE)  # the terminal is back
    assert (done.code, done.out, begun(cloud)) == (0, "models/tiny\n", 1), done.err
    assert "billed" not in done.err and f"job {name} is there" in done.err and "quantize: 4 layers" in done.err
    awq = tmp_path / "models" / "tiny" / "awq"
    settings = read_manifest(awq).settings
    assert (settings["samples"], settings["seq_len"], settings["rounding"]) == (2, 64, "nearest")
    check_whole(awq)
    assert not (tmp_path / "models" / "tiny" / ".jobs").exists()
    measured = sqlite3.connect(tmp_path / "machines" / "mlflow.db").execute("select key, value from metrics").fetchall()
    assert measured and all(key == "quantize/error" and 0 < value < 100 for key, value in measured)
    state = json.loads(cli("jobs", "show", name, "--json").out)
    assert (state["status"], state["exit"], state["compute"]) == ("Completed", 0, "cpus")
    assert '"event": "end"' in cli("jobs", "logs", name).out
    shutil.rmtree(awq)
    job = get(opened := workspace_of(cloud), name)
    with ThreadPoolExecutor(2) as pool:  # two terminals wait for one job
        both = [pool.submit(fetch_results, opened, job, awq.parent, SILENT) for _ in range(2)]
    assert sorted(len(one.result()) for one in both) == [0, 1]
    check_whole(awq)
    stamp = (awq / "model.safetensors").stat().st_mtime_ns
    again = cli(*QUANTIZE)
    assert (again.code, begun(cloud)) == (0, 1) and "0 results put into" in again.err
    assert (awq / "model.safetensors").stat().st_mtime_ns == stamp
    made = read_manifest(awq).created
    assert cli(*QUANTIZE, "--force", "--no-wait").out == f"{name}-2\n"
    again = cli(*QUANTIZE)  # without the option its results are fetched, and nothing is made once more
    assert (again.code, begun(cloud)) == (0, 2) and f"job {name}-2 is there" in again.err, again.err
    assert read_manifest(awq).created > made


def test_a_job_works_on_the_results_that_are_here_and_leaves_them_as_they_are(worker, cloud, cli, tmp_path, data_file):
    train = ("finetune", "--model", "tiny", "--data", data_file, "--lora-r", "4", "--seq-len", "32", "--max-steps", "1",
             "--batch-size", "1", "--eval-split", "0", *ELSEWHERE)
    awq, adapter = (tmp_path / "models" / "tiny" / name for name in ("awq", "ft/travel"))
    bases = []
    for samples in ("1", "2"):
        assert cli("quantize", "--model", "tiny", "--samples", samples, "--seq-len", "32").code == 0
        kept = (awq / "phicli.json").read_bytes()
        done = cli(*train)
        assert done.code == 0 and "1 results put into" in done.err, done.err
        assert (awq / "phicli.json").read_bytes() == kept
        bases.append(read_manifest(adapter).inputs["base"])
    assert begun(cloud) == 2 and bases[0] != bases[1]
    assert cli("quantize", "--model", "tiny", "--samples", "3", "--seq-len", "32", "--force").code == 0
    kept = (awq / "phicli.json").read_bytes()
    opened = workspace_of(cloud)
    last = list(cloud.azure.jobs)[-1]
    assert fetch_results(opened, get(opened, last), awq.parent, SILENT) == []
    assert (awq / "phicli.json").read_bytes() == kept
    for blob in cloud.box.list_blobs():
        cloud.box.delete_blob(blob.name)
    with pytest.raises(Missing, match=f"the files of job {last} are gone"):
        fetch_results(opened, get(opened, last), awq.parent, SILENT)


def test_a_job_that_fails_says_why_and_the_next_one_has_its_place(worker, cloud, cli):
    wrong = ("quantize", "--model", "tiny", "--bits", "3", *ELSEWHERE)
    done = cli(*wrong)
    assert done.code == 5 and "the AWQ format has 4 bits, not 3" in done.err and "phicli jobs logs" in done.err
    assert cli(*wrong, "--no-wait").code == 0
    first, second = cloud.azure.jobs
    assert second == f"{first}-2"
    places = [job["properties"]["outputs"]["out"]["uri"] for job in cloud.azure.jobs.values()]
    assert places[0] == places[1]


def test_a_root_that_cannot_be_written_is_told_before_a_machine_is_paid(worker, cloud, cli, tmp_path):
    (tmp_path / "file").touch()
    done = cli(*QUANTIZE, "--root", "file/root")
    assert done.code == 4 and "file/root: cannot be written" in done.err, done.err
    assert begun(cloud) == 0


def test_a_job_is_ended(worker, cloud, cli, monkeypatch):
    assert "next:" not in cli("jobs", "list").err  # which machine is to run a first one is not known
    monkeypatch.setenv("PHICLI_JOB_COMPUTE", "cpus")
    assert "next: phicli run --on azureml" in cli("jobs", "list").err
    worker.gate.clear()
    name = cli(*QUANTIZE, "--no-wait").out.strip()
    assert (cli("jobs", "cancel", name).code, cloud.azure.jobs[name]["properties"]["status"]) == (0, "Canceled")
    assert "had ended already: Canceled" in cli("jobs", "cancel", name).err
    assert sum(line.endswith("/cancel") for line in cloud.azure.log) == 1
    for nobody in ("phicli-none", ""):
        none = cli("jobs", "cancel", nobody, "--resource-group", cloud.target[3])
        assert none.code == 4 and f"phicli jobs list --workspace-name {cloud.target[1]}" in none.err, none.err


def test_a_machine_taken_away_in_training_is_followed_by_one_that_goes_on(worker, cloud, cli, tmp_path, data_file):
    root = tmp_path / "models" / "tiny"
    train = ("finetune", "--model", "tiny", "--base", "tiny", "--data", data_file, "--lora-r", "4", "--seq-len", "32",
             "--batch-size", "2", "--max-steps", "300", "--checkpoint-steps", "2", "--eval-split", "0", *ELSEWHERE)
    worker.until = ".travel.checkpoint/state.json"
    lost = cli(*train)
    assert lost.code == 5 and worker.until is None, lost.err
    assert not (root / "ft").exists()
    out = next(iter(cloud.azure.jobs.values()))["properties"]["outputs"]["out"]["uri"].partition("/paths/")[2]
    cloud.box.upload_blob(f"{out}/{ROOT}/{COPYING}", b"half a file")
    done = cli(*train)
    assert (done.code, list(cloud.azure.jobs)[1:]) == (0, [f"{next(iter(cloud.azure.jobs))}-2"]), done.err
    logs = cli("jobs", "logs", list(cloud.azure.jobs)[1]).out
    step = int(re.search(r"going on from step (\d+)", logs)[1])
    found = read_manifest(root / "ft" / "travel")
    assert 0 < step < 300 == found.quality["steps"]
    check_whole(root / "ft" / "travel")
    assert not list(tmp_path.rglob(f"models/**/{COPYING}"))


def test_serverless_spot_as_the_service_is_told(worker, cloud, cli, tmp_path):
    worker.gate.clear()
    rows = tmp_path / "trips.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n' * 20)
    done = cli("run", "--model", "tiny", "--data", rows, "--until", "finetune", "--on", "azureml", "--instance-type",
               "Standard_NC24ads_A100_v4", "--spot", "--hours", "2", "--gpus", "4", "--no-wait")
    assert done.code == 0 and "billed: 1 x Standard_NC24ads_A100_v4, serverless, spot" in done.err, done.err
    sent = cloud.azure.jobs[done.out.strip()]["properties"]
    assert sent["resources"] == {"instanceCount": 1, "instanceType": "Standard_NC24ads_A100_v4", "properties": {},
                                 "shmSize": "16g"}
    assert sent["distribution"] == {"distributionType": "PyTorch", "processCountPerInstance": 1}
    assert (sent["queueSettings"], sent["limits"]["timeout"]) == ({"jobTier": "Spot"}, "PT2H")
    place = sent["inputs"]["job"]["uri"].partition("/paths/")[2]
    order = json.loads(cloud.box.download_blob(f"{place}/order.json").readall())
    assert order == {"command": "run", "arguments": ["--data", "{job}/files/0/trips.jsonl", "--gpus", "4",
                                                     "--model", "tiny", "--until", "finetune"]}
    assert cloud.box.download_blob(f"{place}/files/0/trips.jsonl").readall() == rows.read_bytes()
    environment = next(iter(cloud.azure.environments.values()))["properties"]
    assert "torch==" in environment["condaFile"] and "python=3.11" in environment["condaFile"]


def test_what_cannot_be_a_job_is_refused_before_anything_is_asked_of_azure(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, message in ((("--on", "azureml"), "which machine?"),
                             (("--compute", "cpus"), "--compute: is of a job"),
                             (("--no-wait",), "without --on azureml this machine does the work"),
                             ((*ELSEWHERE, "--spot"), "a cluster has its own"),
                             ((*ELSEWHERE, "--output", "out"), "a job writes into the root only")):
        done = cli("quantize", "--model", "tiny", *options)
        assert done.code == 2 and message in done.err, done.err
    shown = json.loads(cli(*QUANTIZE, "--dry-run", "--json").out)
    assert shown["command"] == "phicli quantize --samples 2 --seq-len 64 --model tiny"
    assert {"phicli.zip", "phicli.toml", "order.json"} == shown["files"].keys() and any(
        line.startswith("olive-ai==") for line in shown["pip"])


def test_names_that_can_be_nothing_are_refused_before_a_machine_is_paid(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, code, message in ((("--data", "missing.jsonl"), 3, "no such file or folder"),
                                   (("--data", "-"), 2, "stdin cannot go along"),
                                   (("--eval-data", "./missing"), 3, "no such file or folder"),
                                   (("--base", "missing"), 3, "no such model folder"),
                                   (("--model", "./missing"), 3, "no such model folder")):
        done = cli("finetune", *ELSEWHERE, "--dry-run", *options)
        assert done.code == code and message in done.err, done.err
    for command, option in (("quantize", "calibration"), ("quantize", "plan"), ("run", "workflow")):
        done = cli(command, f"--{option}", "missing.txt", *ELSEWHERE, "--dry-run")
        assert done.code == 3 and f"missing.txt: no such file for --{option}" in done.err, done.err
    assert cli("finetune", "--data", "owner/rows", "--base", "owner/model", *ELSEWHERE, "--dry-run").code == 0
    for command in ("finetune", "optimize"):
        done = cli(command, "--model", "tiny", *ELSEWHERE, "--dry-run")
        assert done.code == 4 and "no quantized model there" in done.err, done.err


def test_a_job_takes_along_what_its_command_names_and_no_settings_of_others(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows 1.jsonl", "keys.txt"):
        (tmp_path / name).write_text('{"prompt": "a", "response": "b"}\n')
    train = ("finetune", "--base", "tiny", "--data", "rows 1.jsonl:0.5", *ELSEWHERE, "--dry-run", "--json")
    alone = json.loads(cli(*train).out)
    assert "--data {job}/files/0/rows 1.jsonl:0.5" in alone["command"]
    assert {name for name in alone["files"] if name.startswith("files/")} == {"files/0/rows 1.jsonl"}
    (tmp_path / "phicli.toml").write_text('[serve]\napi_key_file = "keys.txt"\n[chat]\nsystem = "Be brief."\n')
    monkeypatch.setenv("PHICLI_AZURE_TIMEOUT", "77")
    assert json.loads(cli(*train).out) == alone


def test_a_template_may_have_a_field_named_job():
    assert unpacked("{job}/files/0/rows.jsonl:2", Path("/in")) == "/in/files/0/rows.jsonl:2"
    assert unpacked("An advertisement for {job}: {prompt}", Path("/in")) == "An advertisement for {job}: {prompt}"


def test_a_root_is_mirrored_but_for_locks_and_unfinished_results(tmp_path):
    root, copy = tmp_path / "root", tmp_path / "copy"
    for name in ("awq/a", "ft/.travel.checkpoint/state.json", ".awq.lock", ".awq.new-0123456789abcdef/new/b"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    mirror(root, copy)
    assert {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()} == {
        "awq/a", "ft/.travel.checkpoint/state.json"}
    before = (copy / "awq" / "a").stat().st_ino, (copy / "awq" / "a").stat().st_mtime_ns
    (root / "ft" / ".travel.checkpoint" / "state.json").unlink()
    mirror(root, copy)
    assert ((copy / "awq" / "a").stat().st_ino, (copy / "awq" / "a").stat().st_mtime_ns) == before
    (root / "awq" / "a").write_text("b")
    os.utime(root / "awq" / "a", (1, 1))
    mirror(root, copy)
    assert {p.name for p in copy.rglob("*") if p.is_file()} == {"a"} and (copy / "awq" / "a").read_text() == "b"


def test_a_root_is_mirrored_while_a_command_writes_into_it(tmp_path):
    """A result that is replaced is gone for a moment: neither is that a fault, nor is it gone from the copy."""
    root, copy, ended = tmp_path / "root", tmp_path / "copy", threading.Event()
    place, files = root / "ft" / ".travel.checkpoint", [f"state{i}" for i in range(3)]
    (root / "ft").mkdir(parents=True)

    def save(content: str) -> None:
        with publishing(place) as fresh:
            for name in files:
                (fresh / name).write_text(content * 1000)

    def save_often() -> None:
        for content in itertools.takewhile(lambda _: not ended.is_set(), itertools.cycle("ab")):
            save(content)

    save("a")
    mirror(root, copy)
    kept = copy / "ft" / place.name
    writer = threading.Thread(target=save_often)
    writer.start()
    try:
        for _ in range(300):
            mirror(root, copy)
            size_on_disk(root)
            assert sorted(path.name for path in kept.iterdir()) == files
    finally:
        ended.set()
        writer.join()
    mirror(root, copy)
    assert [(kept / name).read_text() for name in files] == [(place / name).read_text() for name in files]
