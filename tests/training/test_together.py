"""Several processes that train one adapter: as one would, and ending together."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from safetensors.torch import load_file

from phicli.artifacts.stages import read_manifest
from phicli.errors import Missing, UsageError
from phicli.hardware.devices import count_gpus, environments, shards

DATA = Path(__file__).parents[2] / "data" / "data_sample_travel.jsonl"
SETTINGS = ("--data", DATA, "--lora-r", "4", "--lora-dropout", "0", "--batch-size", "5", "--max-steps", "8",
            "--checkpoint-steps", "2", "--seq-len", "96", "--device", "cpu")


def _team() -> list[int]:
    """The processes that train for this one; other tests' servers may be there too."""
    return [p.pid for p in psutil.Process().children() if "phicli.hardware.together" in " ".join(p.cmdline())]


def _kill_second(state: Path) -> None:
    """Kill the second process as soon as a checkpoint is there."""
    while not state.is_file():
        time.sleep(0.01)
    os.kill(max(_team()), signal.SIGKILL)


def test_two_processes_train_as_one_and_go_on_with_a_part_each_after_one_was_killed(awq, tmp_path, cli, monkeypatch):
    roots = [tmp_path / name for name in ("one", "two")]
    for root in roots:
        root.mkdir()
        shutil.copytree(awq, root / "awq")
    assert cli("finetune", "--root", roots[0], *SETTINGS).code == 0
    monkeypatch.setattr("phicli.steps.finetune.count_gpus", lambda wanted, device: int(wanted))  # of processes here
    monkeypatch.setattr("phicli.steps.finetune.check_gpus", lambda wanted, device: None)
    state = roots[1] / "ft" / ".travel.checkpoint" / "state.json"
    killer = threading.Thread(target=_kill_second, args=(state,))
    killer.start()
    killed = cli("finetune", "--root", roots[1], *SETTINGS, "--gpus", "2")
    killer.join()
    assert killed.code == 4
    assert "process 2 of 2 was ended from outside (-9), and the rest with it" in killed.err
    assert not _team()
    step = json.loads(state.read_text())["state"]["step"]
    assert not (roots[1] / "ft" / "travel").exists()
    done = cli("finetune", "--root", roots[1], *SETTINGS, "--gpus", "2", "--shard")
    assert done.code == 0, done.err
    assert f"going on from step {step}" in done.err and "each with a part of the model" in done.err
    one, two = (read_manifest(root / "ft" / "travel").quality for root in roots)
    assert two["gpus"] == 2
    for step_one, step_two in zip(one["curve"], two["curve"], strict=True):
        assert step_two == pytest.approx(step_one, abs=1e-4)
    weights = [load_file(root / "ft" / "travel" / "adapter_model.safetensors") for root in roots]
    for name, weight in weights[0].items():
        assert (weight - weights[1][name]).abs().max() < 1e-4, name


def test_a_model_that_one_gpu_does_not_hold_is_shared_out_or_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: SimpleNamespace(total_memory=8 * 10**9))
    assert [shards(7 * 10**9, 2, wanted) for wanted in (None, True, False)] == [False, True, False]
    assert shards(12 * 10**9, 2, None)
    with pytest.raises(Missing, match=r"each GPU holds the whole model, 12.0 GB, and one of them has 8.0 GB"):
        shards(12 * 10**9, 2, False)
    with pytest.raises(Missing, match=r"each of 2 GPUs would hold 14.0 GB of the model, and one of them has 8.0 GB"):
        shards(28 * 10**9, 2, None)


def test_what_gpus_are_refused(monkeypatch):
    assert count_gpus("1", "cpu") == 1
    for wanted, device, message in (("2", "cpu", "not with --device cpu"), ("0", "auto", "a number of GPUs, or all")):
        with pytest.raises(UsageError, match=message):
            count_gpus(wanted, device)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments(2, "cuda")] == ["3", "5"]


def test_a_base_in_parts_is_refused_where_it_cannot_be(awq, tmp_path, cli):
    for options, message in (((), "goes with several --gpus"),
                             (("--gpus", "2", "--method", "dora"), "an adapter of --method dora needs the whole base")):
        done = cli("finetune", "--root", tmp_path, "--base", awq, "--data", DATA, "--shard", *options)
        assert done.code == 2 and message in done.err, done.err


def test_wrong_gpus_are_refused_where_nothing_is_left_to_do(awq, tmp_path, cli):
    shutil.copytree(awq, tmp_path / "awq")
    assert cli("finetune", "--root", tmp_path, *SETTINGS).code == 0
    for wanted in ("banana", "2"):
        done = cli("finetune", "--root", tmp_path, *SETTINGS, "--gpus", wanted)
        assert done.code == 2 and "--gpus" in done.err
