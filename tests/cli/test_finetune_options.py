"""Options of `phicli finetune`: how much is seen, held-out rows, the best adapter, long rows, going on from one."""

import json
from pathlib import Path

import pytest
from onnx_checkpoints import random_adapter
from random_models import random_model
from safetensors.torch import load_file
from training.bases import quantized

from phicli.artifacts.stages import read_manifest

DATA = Path(__file__).parents[2] / "data"
EVAL = DATA / "data_eval_travel.jsonl"
QUICK = ("--data", DATA / "data_sample_travel.jsonl", "--device", "cpu", "--batch-size", "4", "--seed", "1")
NEW = ("--lora-r", "4")


@pytest.fixture(scope="module")
def root(tiny, tmp_path_factory):
    """A root with a quantized model and an adapter `travel` of 4 steps."""
    from phicli.cli.main import main

    root = tmp_path_factory.mktemp("options")
    quantized(tiny, root)
    assert main(list(map(str, ("finetune", "--root", root, *QUICK, *NEW, "--max-steps", "4")))) == 0
    return root


@pytest.fixture
def tune(cli, root):
    """tune("--epochs", 2) -> what stderr says, and the manifest."""
    def run(*options, name="new"):
        done = cli("finetune", "--root", root, *QUICK, *(() if "--from-adapter" in options else NEW), "--name", name,
                   *options)
        assert done.code == 0, done.err
        return done.err, read_manifest(root / "ft" / name)

    return run


def test_a_part_of_an_epoch_sees_that_part_of_the_rows(tune):
    said, manifest = tune("--epochs", "0.05", "--eval-split", "0.5")
    found = manifest.quality
    assert (found["rows"], found["held_out_rows"]) == (200, 200)
    assert (found["steps"], found["rows_seen"], found["epochs"]) == (3, 12, 0.06)  # whole steps: 2.5 are 3
    assert 0 < found["trained_tokens"] < found["tokens"]
    assert f"saw 12 rows, 0.06 epochs of 200: {found['tokens']:,} tokens" in said
    assert manifest.settings["epochs"] == 0.05 and manifest.settings["max_steps"] is None


def test_of_steps_and_epochs_what_is_over_first_counts(tune):
    assert tune("--epochs", "3", "--max-steps", "2")[1].quality["steps"] == 2
    assert tune("--epochs", "0.02", "--max-steps", "90", "--eval-split", "0")[1].quality["steps"] == 2


def test_held_out_rows_of_a_file_and_the_curve_on_them(tune, root):
    said, manifest = tune("--max-steps", "5", "--eval-data", EVAL, "--eval-steps", "2")
    found = manifest.quality
    assert (found["rows"], found["held_out_rows"]) == (400, 60)
    assert "400 rows to train on, 60 held out of" in said and "of 16 of the 60 held-out rows" in said
    assert [point[0] for point in found["curve"]] == [0, 2, 4, 5]
    assert found["curve"][0][1] is None and all(point[1] > 0 for point in found["curve"][1:])
    assert found["curve"][-1][2] < found["curve"][0][2]
    assert set(manifest.inputs) == {"base", "data", "eval_data"}


def test_evaluates_own_file_is_not_taken_for_held_out_rows(tune, tmp_path, monkeypatch):
    """The setting eval_data is evaluate's: what judges an adapter does not choose it as well."""
    (tmp_path / "phicli.toml").write_text(f'eval_data = "{EVAL}"\n')
    monkeypatch.setenv("PHICLI_CONFIG", str(tmp_path / "phicli.toml"))
    monkeypatch.setenv("PHICLI_EVAL_DATA", str(EVAL))
    assert tune("--max-steps", "1")[1].quality["held_out_rows"] == 40

    from phicli.config.layers import Settings
    from phicli.config.steps import EvaluateConfig, FinetuneConfig
    from phicli.progress import SILENT
    from phicli.steps.lab import Lab

    lab = Lab(Settings(), {"eval_data": "other.jsonl"}, SILENT)
    assert (lab.config(FinetuneConfig).eval_data, lab.config(EvaluateConfig).eval_data) == (None, "other.jsonl")


def test_training_rows_that_ask_what_held_out_rows_ask_are_said(tune, tmp_path):
    rows = (DATA / "data_sample_travel.jsonl").read_text().splitlines()[:10]
    (tmp_path / "same.jsonl").write_text("\n".join(rows) + "\n")
    said, _ = tune("--max-steps", "1", "--eval-data", tmp_path / "same.jsonl")
    assert "warning: 10 rows to train on ask what rows of" in said


def test_an_adapter_without_gain_is_kept_beside_and_published_on_request(cli, tune, root):
    options = ("--max-steps", "3", "--learning-rate", "5", "--name", "bad")
    before = {p.name for p in (root / "ft").iterdir()}
    done = cli("finetune", "--root", root, *QUICK, *NEW, *options)
    assert (done.code, done.out) == (3, "")
    aside = root / "ft" / ".bad.unpublished"
    assert "no gain, so it is not published" in done.err and str(aside) in done.err and "--publish-anyway" in done.err
    assert {p.name for p in (root / "ft").iterdir()} - before == {".bad.unpublished", ".bad.checkpoint"}
    weights = (aside / "adapter_model.safetensors").read_bytes()
    assert read_manifest(aside).quality["held_out_loss_after"] > read_manifest(aside).quality["held_out_loss_before"]
    again = cli("finetune", "--root", root, *QUICK, *NEW, *options)
    assert again.code == 3 and "all 3 steps are done already" in again.err
    said, manifest = tune(*options[:4], "--publish-anyway", name="bad")
    assert "all 3 steps are done already" in said and "warning: the held-out loss is" in said
    assert (root / "ft" / "bad" / "adapter_model.safetensors").read_bytes() == weights
    assert manifest.quality["steps"] == 3
    assert not aside.exists() and not (root / "ft" / ".bad.checkpoint").exists()


def test_what_stands_where_such_an_adapter_would_be_kept_stays(cli, root):
    aside = root / "ft" / ".mine.unpublished"
    aside.mkdir()
    (aside / "notes.txt").write_text("mine")
    done = cli("finetune", "--root", root, *QUICK, *NEW, "--max-steps", "1", "--name", "mine")
    assert done.code == 3 and "files that no step of phicli made" in done.err
    assert (aside / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("too_long", "word"), [("cut", "are cut, with"), ("drop", "left out"), ("split", "split")])
def test_long_rows(tune, too_long, word):
    said, manifest = tune("--max-steps", "6", "--seq-len", "72", "--too-long", too_long)
    found = manifest.quality
    assert "rows have more than 72 tokens" in said and word in said
    assert 0 < found["rows_too_long"] < found["rows_seen"] == 24
    assert found["rows_left_out"] == (found["rows_too_long"] if too_long == "drop" else 0)


def test_going_on_from_an_adapter(tune, root):
    first = read_manifest(root / "ft" / "travel").quality
    _, manifest = tune("--max-steps", "3", "--from-adapter", "travel")
    found, settings = manifest.quality, manifest.settings
    assert found["held_out_loss_before"] == pytest.approx(first["held_out_loss_after"], abs=1e-4)
    assert found["held_out_loss_after"] < found["held_out_loss_before"]
    assert (settings["lora_r"], settings["lora_alpha"]) == (4, 8)
    assert set(manifest.inputs) == {"base", "data", "from_adapter"}
    old, new = (json.loads((root / "ft" / name / "adapter_config.json").read_text()) for name in ("travel", "new"))
    assert old == new
    assert load_file(root / "ft/new/adapter_model.safetensors").keys() == load_file(
        root / "ft/travel/adapter_model.safetensors").keys()


def test_adapters_that_cannot_be_continued(cli, root, tmp_path):
    random_model(tmp_path / "model", "phi3")
    other = random_adapter(tmp_path / "model", tmp_path / "other", target_modules=["down_proj"])
    dora = random_adapter(tmp_path / "model", tmp_path / "dora", target_modules=["down_proj"], use_dora=True)
    for given, code, message in (
        (("travel", "--lora-r", "8"), 2, "--lora-r: the adapter to continue from has 4: leave the option out"),
        ((other,), 3, "an adapter for another model"), ((dora,), 3, "DoRA scales each row"),
    ):
        done = cli("finetune", "--root", root, *QUICK, "--name", "other", "--from-adapter", *given)
        assert (done.code, done.out) == (code, "") and message in done.err
    assert not (root / "ft" / "other").exists()


def test_the_last_adapter_on_request(tune):
    _, manifest = tune("--max-steps", "3", "--keep", "last")
    assert manifest.quality["kept_step"] == 3 and manifest.settings["keep"] == "last"


def test_a_rank_over_the_hidden_size_is_warned_of_before_and_while_training(cli, root):
    options = ("finetune", "--root", root, *QUICK, "--name", "wide", "--max-steps", "1", "--dry-run", "--lora-r")
    warning = "warning: --lora-r 257 is more than the model's hidden size, 256: "
    assert warning in cli(*options, "257").err and "warning" not in cli(*options, "256").err
    trained = cli(*(option for option in options if option != "--dry-run"), "257", "--publish-anyway")
    assert trained.code == 0 and trained.err.count(warning) == 1


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_limit_of_gpu_memory_without_a_gpu_is_said_to_do_nothing(cli, root, more):
    said = cli("finetune", "--root", root, *QUICK, *NEW, "--max-steps", "1", "--name", "limited", "--publish-anyway",
               "--gpu-memory", "8", *more).err
    assert "warning: --gpu-memory does nothing here" in said


def test_a_dry_run_warns_of_memory_and_disk_that_do_not_suffice_as_the_step_does(cli, root, monkeypatch):
    monkeypatch.setenv("PHICLI_FINETUNE_SEQ_LEN", "64")
    given = ("--root", root, "--device", "cpu", "--name", "new", "--dry-run")
    for command in (("finetune", *given, "--batch-size"), ("run", *given, "--seed")):
        few = cli(*command, "4")
        assert few.code == 0 and "may not be enough" not in few.err
        monkeypatch.setenv("PHICLI_FINETUNE_BATCH_SIZE", "10000000")
        many = cli(*command, "10000000")
        assert many.code == 0 and many.err.count("warning: finetune needs about ") == 1
        assert many.err.count("memory may not be enough") == 1
        monkeypatch.delenv("PHICLI_FINETUNE_BATCH_SIZE")


def test_a_dry_run_tells_the_time_of_an_earlier_result_for_the_same_work_only(cli, root):
    def told(*options):
        done = cli("finetune", "--root", root, *QUICK, "--dry-run", "--json", "--force", *options)
        return json.loads(done.out)[0]["last_time"]

    same = ("--max-steps", "4", *NEW)
    assert told(*same) and not told("--max-steps", "4", "--lora-r", "8") and not told("--max-steps", "5", *NEW)
    assert not told(*same, "--epochs", "1")


def test_a_dry_run_with_a_base_alone_judges_the_model_that_it_is_of(cli, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned, = json.loads(cli("finetune", "--base", root / "awq", "--device", "cpu", "--dry-run", "--json").out)
    assert planned["memory"] < 2e9 and planned["place"] == "models/tiny/ft/travel"
