"""list, show, rm, logs, env, and what status says of an interrupted finetune."""

import getpass
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from phicli.artifacts.locks import held
from phicli.artifacts.stages import Manifest, write_manifest, write_sealed
from phicli.config.last_used import remember_last
from phicli.hub.roots import remember_model
from phicli.progress import SILENT


def stage(folder: Path, step: str, *files: str, **quality) -> None:
    """A stage's folder as its step would leave it, as far as its manifest goes."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name * 100)
    write_manifest(folder, Manifest(step, {}, {"seed": 0}, seconds=1.5, quality=quality))


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """models/mine with all that a lab leaves, in the working folder; and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "models" / "mine"
    stage(root / "awq", "quantize", "model.safetensors")
    for name in ("travel", "food"):
        stage(root / "ft" / name, "finetune", "adapter_config.json", held_out_loss_after=4.5)
    stage(root / "onnx-ao", "optimize", "model.onnx", "adapters/travel.onnx_adapter", "adapters/food.onnx_adapter")
    write_sealed(root / "evaluation.json", {"stages": [], "created": "2026-11-27T10:00:00Z"})
    remember_model(root, "tiny")
    remember_last(Path(), "tiny", root)
    (root / "logs").mkdir()
    (root / "logs" / "phicli-quantize.log").write_text("Loading\x1b[2J weights\n")
    (root / "ft" / ".food.checkpoint").mkdir()
    (root / "ft" / ".food.checkpoint" / "state.json").write_text(
        json.dumps({"key": {"settings": {"max_steps": 100}}, "state": {"step": 40}}))
    (tmp_path / "cache" / "phicli" / "ops-12").mkdir(parents=True)
    (tmp_path / "cache" / "phicli" / "ops-12" / "lib.so").write_text("code")
    return root


def test_list_and_show(cli, root):
    done = cli("list", "--json")
    found = json.loads(done.out)
    assert [(one["name"], one["model"], len(one["made"])) for one in found["models"]] == [("mine", "tiny", 5)]
    assert found["caches"] == {"cache/kernels": 4} and "next: phicli chat --model tiny --root models/mine\n" in done.err
    table = cli("list").out
    assert "mine/travel" in table and "mine/food" in table and "cache/kernels" in table
    shown = cli("show", "mine/food")
    assert "held_out_loss_after 4.5" in shown.out and "seed 0" in shown.out and "travel" not in shown.out
    assert "next: phicli chat --model tiny --root models/mine --adapter food" in shown.err  # not models/tiny
    assert len(json.loads(cli("show", root, "--json").out)["made"]) == 5
    unknown = cli("show", "yours")
    assert unknown.code == 2 and "there are: mine, mine/food, mine/travel" in unknown.err


def test_nothing_goes_unasked_and_a_dry_run_only_tells(cli, root):
    before = sorted(root.rglob("*"))
    refused = cli("rm", "mine", "mine/food")
    assert refused.code == 2 and "  try: phicli rm mine mine/food --yes\n" in refused.err
    told = cli("rm", "mine", "mine/food", "--dry-run")
    assert told.code == 0 and "would remove: models/mine/awq" in told.err
    assert sorted(root.rglob("*")) == before


def test_an_adapter_goes_with_its_checkpoint_and_its_file(cli, root):
    assert cli("rm", "mine/food", "--yes").code == 0
    assert sorted(path.name for path in (root / "ft").iterdir()) == ["travel"]
    assert [path.name for path in (root / "onnx-ao" / "adapters").iterdir()] == ["travel.onnx_adapter"]


def test_training_that_was_not_finished_is_listed_and_goes(cli, root):
    shutil.rmtree(root / "ft" / "food")
    assert "training that was not finished" in cli("list").out
    assert cli("rm", "mine/food", "--yes").code == 0
    assert sorted(path.name for path in (root / "ft").iterdir()) == ["travel"]


def test_a_model_goes_whole_and_is_no_longer_the_last_one(cli, root):
    write_sealed(root / "benchmark.json", {"rows": []})
    assert cli("rm", "mine", "cache/kernels", "--yes").code == 0
    assert not root.exists() and not (root.parent / "phicli-last.json").exists()
    assert not (root.parents[1] / "cache" / "phicli" / "ops-12").exists()


def test_what_was_made_of_a_model_goes_with_it_and_what_stays_is_named(cli, root):
    stage(root / "merged" / "food", "merge", "model.safetensors")
    stage(root / "export" / "mine-foundry-local", "export", "model.onnx")
    stage(root / "onnx-ao-food", "optimize", "model.onnx")
    (root / "report.html").write_text("mine")
    made = [one["place"] for one in json.loads(cli("list", "--json").out)["models"][0]["made"]]
    assert made[5:] == [f"models/mine/{name}" for name in ("onnx-ao-food", "merged/food", "export/mine-foundry-local")]
    done = cli("rm", "mine", "--yes")
    assert done.code == 0 and "left in models/mine, which may be yours: report.html" in done.err
    assert done.err.count("phicli-last.json") == 1
    assert [path.name for path in root.iterdir()] == ["report.html"]
    stage(root / "merged" / "food", "merge", "model.safetensors")  # of which nothing else is there
    assert cli("rm", "mine", "--yes").code == 0 and not (root / "merged").exists()


def test_what_is_anothers_stays(cli, root, tmp_path):
    (root / "notes.txt").write_text("mine")
    (root / "accepted.json").write_text('{"rows": []}')
    (root / "awq" / "notes.txt").write_text("mine")
    refused = cli("rm", "mine", "--yes")
    assert refused.code == 3 and "notes.txt is in it, which no step of phicli made" in refused.err
    assert (root / "awq" / "model.safetensors").is_file() and (root / "ft" / "food").is_dir()
    (root / "awq" / "notes.txt").unlink()
    (root / "onnx-ao" / "phicli.json").write_text("{")
    refused = cli("rm", "mine", "--yes")
    assert refused.code == 3 and "damaged" in refused.err and (root / "awq").is_dir()
    shutil.rmtree(root / "onnx-ao")
    shutil.move(root / "awq", tmp_path / "disk")
    (root / "awq").symlink_to(tmp_path / "disk")
    assert cli("rm", "mine", "--yes").code == 0
    assert {path.name for path in root.iterdir()} == {"notes.txt", "accepted.json"} and not (tmp_path / "disk").exists()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    assert cli("rm", tmp_path / "folder", "--yes").code == 2 and (tmp_path / "folder" / "thesis.txt").is_file()
    assert cli("rm", "cache/../../models", "--yes").code == 2


def test_a_stage_that_is_worked_on_stays(cli, root):
    with held(root / "ft" / "food", SILENT):
        refused = cli("rm", "mine", "--yes")
    assert refused.code == 4 and "works on it" in refused.err and (root / "awq").is_dir()


def test_status_tells_of_an_interrupted_finetune(cli, root):
    state = root / "ft" / ".food.checkpoint" / "state.json"
    os.utime(state, (time.time() - 300,) * 2)
    stages = json.loads(cli("status", "--model", "tiny", "--root", root, "--json").out)
    food, = [one for one in stages if one["place"].endswith("food")]
    assert food["why"].endswith("interrupted, 40 of 100 steps are kept, from 5 minutes ago")
    state.write_text('{"state": []}')
    assert "interrupted" not in cli("status", "--model", "tiny", "--root", root).out


def test_logs(cli, root):
    assert "models/mine/logs/phicli-quantize.log" in cli("logs", "--root", "models/mine").out
    assert "Loading" in cli("logs", "quantize", "--root", root).out
    missing = cli("logs", "optimize", "--root", root)
    assert missing.code == 2 and "there are: quantize" in missing.err


def test_env_has_no_secret_no_name_and_no_path(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("PHICLI_SEED", "7")
    monkeypatch.setenv("PHICLI_MODEL", str(tmp_path / "private"))
    monkeypatch.setenv("PHICLI_AZURE_SUBSCRIPTION", "1234-5678")
    monkeypatch.setenv("PHICLI_AZURE_CONNECTIONS", "3")
    done = cli("env")
    told = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert told["phicli"] and told["seed"].startswith("7, from the environment")
    assert told["model"].startswith(told["azure.subscription"].split(",")[0]) and "(set)" in told["azure.connections"]
    for private in ("hf_secret", "1234", "private", str(tmp_path), str(Path.home()), getpass.getuser() + "/"):
        assert private not in done.out
