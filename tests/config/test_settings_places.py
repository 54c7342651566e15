"""Which settings file counts, what its paths mean, and the model used last."""

import json
import shutil

import pytest

from phicli.artifacts.stages import Manifest, write_manifest
from phicli.config.last_used import FILE, read_last, remember_last
from phicli.config.layers import SETTINGS, Settings
from phicli.config.steps import FinetuneConfig, OptimizeConfig
from phicli.config.writing import write_settings
from phicli.dataset.sources import local_path
from phicli.hub.roots import remember_model


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a settings file; the working folder is two below it."""
    (tmp_path / "phicli.toml").write_text(
        'model = "tiny"\ndata = ["rows.jsonl:2", "owner/name"]\n[azure]\ncache = "c"\n')
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    return tmp_path


def test_found_from_below_with_paths_seen_from_its_folder(project):
    settings = Settings()
    assert str(settings.path) == "../../phicli.toml"
    config = settings.resolve(FinetuneConfig)
    assert (config.model, config.root) == ("tiny", "../../models/tiny") and not config.root_chosen
    assert config.data == ("../../rows.jsonl:2", "owner/name")
    assert settings.get(SETTINGS["azure.cache"]).value == "../../c"
    assert settings.resolve(FinetuneConfig, {"data": ["rows.jsonl"], "root": "r"}).data == ("rows.jsonl",)


def test_a_nearer_file_counts_and_one_in_another_place_has_no_part_in_the_usual_root(project, monkeypatch):
    (project / "a" / "phicli.toml").write_text("seed = 3\n")
    assert Settings().resolve(FinetuneConfig).seed == 3
    monkeypatch.setenv("PHICLI_CONFIG", "../../phicli.toml")
    config = Settings().resolve(FinetuneConfig)
    assert config.root == "models/tiny" and config.data[0] == "../../rows.jsonl:2"


def test_nothing_is_taken_from_above_the_home_folder_nor_from_where_others_write(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project / "a"))
    assert Settings().path is None
    monkeypatch.setenv("HOME", "/nowhere")
    assert Settings().path is not None
    project.chmod(0o777)
    assert Settings().path is None
    project.chmod(0o755)
    (project / "phicli.toml").chmod(0o666)
    assert Settings().path is None


def test_the_model_used_last_is_the_default_until_something_else_says_which(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "models" / "mine"
    root.mkdir(parents=True)
    remember_last(Settings().folder, "tiny", root)
    assert read_last(Settings().folder) == {"model": "tiny", "root": "models/mine"}
    assert Settings().resolve(OptimizeConfig).root == "models/mine"
    assert Settings().resolve(OptimizeConfig, {"model": "a/b"}).root == "models/b"
    assert Settings().resolve(OptimizeConfig, {"root": "x"}).model == "microsoft/Phi-3.5-mini-instruct"
    write_settings(tmp_path / "phicli.toml", {"model": "c/d"})
    assert Settings().resolve(OptimizeConfig).model == "c/d"
    (tmp_path / FILE).write_text("[" * 10_000)
    assert read_last(Settings().folder) == {}
    remember_last(Settings().folder, "tiny", tmp_path)  # a root elsewhere
    assert (tmp_path / FILE).read_text().startswith("[[")


def test_the_last_model_is_shown_with_its_place(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    remember_last(Settings().folder, "tiny", tmp_path / "models" / "tiny")
    assert json.loads(cli("config", "--json").out)["model"] == {"value": "tiny", "origin": "models/phicli-last.json"}


def test_the_labs_rows_are_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = local_path("data/data_sample_travel.jsonl")
    assert found.is_absolute() and len(found.read_text().splitlines()) == 400
    assert local_path("data/other.jsonl") is None
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data_sample_travel.jsonl").write_text("")
    assert str(local_path("data/data_sample_travel.jsonl")) == "data/data_sample_travel.jsonl"


def test_get_set_and_edit(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "phicli.toml"
    path.write_text("# mine\nseed = 1  # first\n")
    assert cli("config", "set", "finetune.max_steps", "7").out == "phicli.toml\n"
    assert cli("config", "set", "quantize.skip", "lm_head, o_proj").code == 0
    assert path.read_text() == ('# mine\nseed = 1  # first\n\n[finetune]\nmax_steps = 7\n\n[quantize]\n'
                                'skip = ["lm_head", "o_proj"]\n')
    done = cli("config", "get", "finetune.max_steps")
    assert (done.out, done.err) == ("7\n", "from phicli.toml\n")
    wrong = cli("config", "set", "finetune.max_step", "7")
    assert wrong.code == 2 and "finetune.max_steps" in wrong.err
    assert cli("config", "set", "seed", "-1").code == 2 and "at least 0" in cli("config", "set", "seed", "-1").err
    monkeypatch.setenv("VISUAL", "sed -i s/=.7/=8/")
    assert cli("config", "edit").code == 0 and "max_steps =8" in path.read_text()
    monkeypatch.setenv("VISUAL", "sed -i s/seed/sead/")
    broken = cli("config", "edit")
    assert broken.code == 3 and "did you mean 'seed'?" in broken.err


def test_a_root_that_is_given_alone_has_its_own_model_wherever_it_was_copied(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)

    def model_of(root):
        config = Settings().resolve(OptimizeConfig, {"root": root})
        assert config.root == root
        return config.model

    usual = model_of("nowhere")
    remember_model(tmp_path / "there" / "lab", "tiny")
    (tmp_path / "there" / "model").mkdir()
    remember_model(tmp_path / "there" / "own", "there/model")
    shutil.copytree("there", "here")
    assert (model_of("here/lab"), model_of("here/own")) == ("tiny", "there/model")
    monkeypatch.chdir(tmp_path / "here")
    assert model_of("own") == str(tmp_path / "there" / "model")
    shutil.rmtree(tmp_path / "there")
    assert model_of("own") == "own/../model"
    assert Settings().resolve(OptimizeConfig, {"root": "own", "model": "tiny"}).model == "tiny"
    (tmp_path / "here" / "own" / "phicli-model.json").write_text('{"model": "a\\u001b"}')
    assert model_of("own") == usual
    origins = {"model": {"path": str(tiny)}}
    write_manifest(tmp_path / "here" / "own", Manifest("optimize", {}, {}))
    (tmp_path / "here" / "own" / "awq").mkdir()
    write_manifest(tmp_path / "here" / "own" / "awq", Manifest("quantize", {}, {}, origins=origins))
    assert model_of("own") == "tiny"
