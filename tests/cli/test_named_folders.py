"""A folder that is named to a command, not found under the model's root: what it is called, and what makes it again."""

import shutil

import pytest

from phicli.artifacts.stages import Manifest, write_manifest
from phicli.config.layers import Settings
from phicli.config.measuring import BenchmarkConfig
from phicli.config.steps import FinetuneConfig, OptimizeConfig
from phicli.hub.roots import remember_model


def stage(folder, step, **origins):
    """A result of a step whose only file has been cut since."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_text("graph")
    write_manifest(folder, Manifest(step, {}, {}, origins={name: {"path": path} for name, path in origins.items()}))
    (folder / "model.onnx").write_text("")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The root `lab` in the working folder, with a damaged model, which lies in `copy` too."""
    monkeypatch.chdir(tmp_path)
    stage(tmp_path / "lab" / "awq", "quantize", model="/nowhere")
    stage(tmp_path / "lab" / "onnx-ao", "optimize", base="../awq")
    for folder in ("lab/onnx-ao", "nothing"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "lab" / "onnx-ao" / "genai_config.json").write_text("{}")
    shutil.copytree(tmp_path / "lab" / "onnx-ao", tmp_path / "copy")
    remember_model(tmp_path / "lab", "tiny")
    return tmp_path / "lab"


@pytest.mark.parametrize("command", ["chat -p Hello", "benchmark", "export --output x.zip", "serve --port 0"])
@pytest.mark.parametrize(("named", "hint"), [
    ("copy", "--output copy"),
    ("nothing", "--output nothing"),
    ("copy --root lab", "--root lab --output copy"),
    ("lab/onnx-ao", "--root lab --output lab/onnx-ao"),
])
def test_what_makes_a_model_again_puts_it_where_it_was_named(cli, lab, command, named, hint):
    done = cli(*command.split(), "--path", *named.split())
    (tried,) = (line for line in done.err.splitlines() if line.startswith("  try: "))
    assert done.code in (3, 4) and tried.removesuffix(" --force") == f"  try: phicli optimize {hint}"


@pytest.mark.parametrize(("named", "made", "hint"), [
    ("lab/awq", True, "phicli {} --root lab"), ("lab", True, "phicli {} --root lab"),
    ("lab/ft/travel", True, "phicli {} --root lab"), ("lab/merged/a", False, "phicli optimize --root lab"),
    ("alone", False, "phicli optimize --base alone"), ("merged", False, "phicli run --model merged"),
    ("hub", False, "phicli run --model hub")])
@pytest.mark.parametrize("command", ["chat", "serve", "export"])
def test_another_folder_in_place_of_the_model_is_not_built_over(cli, lab, tmp_path, command, named, made, hint):
    """As `optimize --output` would, which refuses to replace what it is made from."""
    for place, step in (("lab/ft/travel", "finetune"), ("lab/merged/a", "merge"), ("alone", "quantize"),
                        ("merged", "merge")):
        stage(tmp_path / place, step)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    if not made:
        (lab / "onnx-ao" / "genai_config.json").unlink()
    done = cli(command, *(("-p", "Hello") if command == "chat" else ()), "--path", named)
    assert done.code == 3 and f"  try: {hint.format(command)}\n" in done.err, done.err


def test_what_is_named_otherwise_is_made_again_there_too(cli, lab, tiny):
    judged = cli("evaluate", "--stage", "lab/onnx-ao")
    assert "  try: phicli optimize --root lab --output lab/onnx-ao\n" in judged.err
    assert "  try: phicli quantize --output lab/awq\n" in cli("optimize", "--base", "lab/awq").err
    shutil.rmtree(lab / "awq")
    stage(lab / "awq", "quantize", model=str(tiny))
    assert "  try: phicli quantize --model tiny --output lab/awq\n" in cli("optimize", "--base", "lab/awq").err
    assert "  try: phicli quantize --root lab\n" in cli("optimize", "--root", "lab").err  # found, not named


def test_a_folder_of_a_root_is_of_that_root_s_model(lab, tmp_path, monkeypatch):
    config = Settings().resolve(BenchmarkConfig, {"path": "lab/onnx-ao"})
    assert (config.root, config.model) == ("lab", "tiny")
    assert Settings().resolve(BenchmarkConfig, {"path": "lab/onnx-ao", "root": "r"}).root == "r"
    assert Settings().resolve(BenchmarkConfig, {"path": "copy"}).root == "models/phi"
    monkeypatch.chdir(lab / "onnx-ao")
    assert Settings().resolve(BenchmarkConfig, {"path": "."}).root == ".."


def test_an_export_is_called_as_the_folder_that_it_is_of(cli, two_graphs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab").mkdir()
    remember_model(tmp_path / "lab", "tiny")
    for place in ("lab/onnx-ao", "lab/onnx-ao-travel", "lab/mine", "my model"):
        shutil.copytree(two_graphs / "onnx-ao", tmp_path / place)
        exported = cli("export", "--path", place)
        assert exported.code == 0, exported.err
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.zip")) == [
        "lab/export/lab-mine.zip", "lab/export/lab-travel.zip", "lab/export/lab.zip", "my model.zip"]
    again = cli("export", "--path", "my model")
    assert again.code == 3 and "my model.zip: is there already" in again.err  # it may be another's
    assert cli("export", "--path", "my model", "--root", "lab", "--to", "foundry-local").out.startswith("lab/export/")
    monkeypatch.chdir(tmp_path / "my model")
    assert cli("export", "--path", ".", "--to", "foundry-local").out == "../my model-foundry-local\n"


@pytest.mark.parametrize("to", ["gguf", "peft"])
def test_a_folder_that_tells_no_model_is_not_exported_as_the_usual_one(cli, lab, to):
    refused = cli("export", "--path", "copy", "--to", to)
    assert refused.code == 2 and f"  try: phicli export --model MODEL --to {to}\n" in refused.err
    assert "this folder lies in none" not in cli("export", "--path", "lab/onnx-ao", "--to", to).err


@pytest.mark.parametrize(("place", "asked", "hint"), [
    ("lab/onnx-ao-travel", "travel", "leave the adapter out: it is in the model\n   or: phicli optimize --root lab "
                                     "--adapter travel"),
    ("lab/onnx-ao-travel", "other", "phicli optimize --root lab --adapter other=FOLDER"),
    ("lab/onnx-ao", "other", "phicli optimize --output OTHER_FOLDER --adapter other=FOLDER"),
    ("copy-travel", "travel", "leave the adapter out: it is in the model\n   or: phicli optimize --output OTHER_FOLDER "
                              "--adapter travel=FOLDER")])
def test_a_model_with_an_adapter_in_its_weights_is_not_built_over(cli, two_graphs, tmp_path, monkeypatch, place, asked,
                                                                   hint):
    """Another adapter goes into another model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(two_graphs / "onnx-ao", tmp_path / place)
    for file in (tmp_path / place / "adapters").iterdir():
        file.unlink()
    made = {"step": "merge", "origins": {"adapter": {"path": "../../ft/travel"}}}
    write_manifest(tmp_path / place, Manifest("optimize", {}, {}, quality={"adapters": {}},
                                              origins={"base": {"path": "../merged/travel-int4", "made": made}}))
    (tmp_path / "lab" / "ft" / "travel").mkdir(parents=True)
    remember_model(tmp_path / "lab", "tiny")
    for command in ("chat -p Hello", "benchmark", "serve --port 0"):
        done = cli(*command.split(), "--path", place, "--adapter", asked)
        assert done.code == 3 and "'travel' is in the weights of this model" in done.err
        assert f"\n  try: {hint}\n" in done.err.replace("--model tiny ", "")
    (tmp_path / place / "model.onnx").write_text("")
    damaged = cli("chat", "-p", "Hello", "--path", place).err
    root = "--root lab " if place.startswith("lab") else ""
    assert f"  try: phicli optimize {root}--merge travel --output {place}" in damaged


def test_a_quantized_base_alone_is_of_the_model_that_it_was_made_from(tmp_path, monkeypatch, tiny):
    """Its adapters and graphs are no other model's: not in the root of the usual one, and not remembered as its."""
    monkeypatch.chdir(tmp_path)
    stage(tmp_path / "mine", "quantize", model=str(tiny))
    for config in (FinetuneConfig, OptimizeConfig):
        alone = Settings().resolve(config, {"base": "mine"})
        assert (alone.root, alone.model) == ("models/tiny", "tiny")
        rooted = Settings().resolve(config, {"base": "mine", "root": "new"})
        assert (rooted.root, rooted.model) == ("new", "tiny")
        named = Settings().resolve(config, {"base": "mine", "model": "org/other"})
        assert named.model == "org/other"
    remember_model(tmp_path / "lab", "org/own")
    assert Settings().resolve(FinetuneConfig, {"base": "mine", "root": "lab"}).model == "org/own"
