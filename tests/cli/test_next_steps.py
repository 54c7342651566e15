"""What comes next is printed ready to paste, with the settings of the command before; hints have them too."""

import json
import shlex
import shutil

import pytest

from phicli.artifacts.stages import Manifest, write_manifest
from phicli.cli.following import Following
from phicli.config.commands import ChatConfig, ServeConfig
from phicli.config.layers import Settings
from phicli.config.setting import settings_of
from phicli.config.steps import EvaluateConfig, FinetuneConfig, OptimizeConfig
from phicli.errors import BadInput, Missing, RemoteError, UsageError
from phicli.hardware.driver import gpu_count
from phicli.hub.roots import remember_model
from phicli.inference.devices import RUN_HERE

no_gpu = pytest.mark.skipif(gpu_count() > 0, reason="needs a machine without a GPU")
ELSEWHERE = "next, on a machine with an NVIDIA GPU: "


def after(done):
    return [line.removeprefix("next: ") for line in done.err.splitlines() if line.startswith("next: ")]


@pytest.fixture
def following(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHICLI_MODEL", "tiny")
    monkeypatch.setenv("PHICLI_CHAT_STOP", "a, b")
    given = {"root": "my lab", "device": "cpu", "name": "trip", "data": ["rows.jsonl"], "mask_prompt": False}
    return Following(Settings(), given, settings_of(FinetuneConfig))


def test_settings_go_along_where_the_next_command_has_them(following, monkeypatch):
    assert following.line("optimize") == "phicli optimize --model tiny --root 'my lab' --device cpu"
    assert shlex.split(following.line("chat", "--adapter", "trip"))[2:] == [
        "--model", "tiny", "--root", "my lab", "--stop", "a, b", "--device", "cpu", "--adapter", "trip"]
    assert following.line("deploy", "--to", "kubernetes") == (
        "phicli deploy --model tiny --root 'my lab' --to kubernetes")
    monkeypatch.setenv("PHICLI_AZURE_WORKSPACE_NAME", "w")
    for command in ("upload", "jobs show", "download"):
        assert "--workspace-name w" in following.line(command)
    assert "--no-mask-prompt" in following.line("finetune") and "--name trip" in following.line("finetune")
    assert following.line("inspect") == "phicli inspect --model tiny --root 'my lab' rows.jsonl"
    monkeypatch.setenv("PHICLI_CONFIG", "my.toml")
    assert following.line("list") == "phicli --config my.toml list"


@pytest.mark.parametrize(("error", "hint"), [
    (Missing("no model", hint="phicli quantize"), "phicli quantize --model tiny --root 'my lab' --device cpu"),
    (BadInput("damaged", hint="phicli optimize --force"),
     "phicli optimize --model tiny --root 'my lab' --device cpu --force"),
    (BadInput("more than matrices", hint="phicli merge --adapter dora"),
     "phicli merge --model tiny --root 'my lab' --device cpu --adapter dora"),
    (Missing("no GPU", hint="phicli optimize --device cpu"),
     "phicli optimize --model tiny --root 'my lab' --device cpu"),
    (BadInput("another", hint="phicli chat --model big"), "phicli chat --device cpu --model big"),
    (BadInput("bad row", where="rows.jsonl:3"), "phicli inspect --model tiny --root 'my lab' rows.jsonl"),
    (UsageError("two of them"), "phicli finetune --help"),
    (RemoteError("no answer"), "phicli doctor --model tiny --root 'my lab' --device cpu --online"),
])
def test_a_hint_has_the_settings_too(following, error, hint):
    following.complete(error, "finetune")
    assert error.hint == hint
    assert error.see == "phicli doctor --model tiny --root 'my lab' --device cpu"


def test_what_helps_too_has_the_settings_too(following):
    error = Missing("no model", hint="--base FOLDER", also=["phicli quantize", "a command: phicli run --force"])
    following.complete(error, "finetune")
    assert error.also == ("phicli quantize --model tiny --root 'my lab' --device cpu",
                          "a command: phicli run --model tiny --root 'my lab' --device cpu --force")


@pytest.mark.parametrize(("given", "hint", "line"), [
    ({"engine": "vllm", "path": "my model", "api_key": "secret", "host": "0.0.0.0"}, "phicli serve --api-key-file FILE",
     "phicli serve --model tiny --path 'my model' --host 0.0.0.0 --engine vllm --api-key-file FILE"),
    ({"engine": "vllm", "host": "nowhere"}, "phicli serve --host 127.0.0.1",
     "phicli serve --model tiny --engine vllm --host 127.0.0.1"),
    ({"engine": "vllm"}, "phicli serve --model big", "phicli serve --model big")])
def test_a_server_that_is_to_start_again_has_all_that_it_was_given(monkeypatch, tmp_path, given, hint, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHICLI_MODEL", "tiny")
    error = UsageError("not so", hint=hint)
    Following(Settings(), given, settings_of(ServeConfig)).complete(error, "serve")
    assert error.hint == line


@pytest.mark.parametrize(("command", "config", "given", "line"), [
    ("serve", ServeConfig, {"provider": "webgpu", "port": 9}, "phicli serve --model tiny --port 9 --device cpu"),
    ("evaluate", EvaluateConfig, {}, "phicli evaluate --model tiny --device cpu"),
    ("chat", ChatConfig, {}, "phicli chat --model tiny --device cpu"),
    ("optimize", OptimizeConfig, {}, "phicli chat --model tiny --device cpu")])
def test_what_cannot_run_here_is_to_run_on_a_cpu(monkeypatch, tmp_path, command, config, given, line):
    """By the command that was asked, without the provider that is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHICLI_MODEL", "tiny")
    error = Missing("no such provider", hint=RUN_HERE, also=[RUN_HERE])
    Following(Settings(), given, settings_of(config)).complete(error, command)
    assert (error.hint, error.also) == (line, (line,))


def test_a_result_for_a_provider_is_run_by_it(monkeypatch, tmp_path):
    """`chat --device cpu` would run a folder for OpenVINO on onnxruntime's own CPU provider."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHICLI_MODEL", "tiny")
    for given, line in (({"device": "cpu", "provider": "openvino"}, "phicli chat --model tiny"),
                        ({"device": "cpu"}, "phicli chat --model tiny --device cpu")):
        assert Following(Settings(), given, settings_of(OptimizeConfig)).line("chat") == line


def test_a_folder_that_was_named_is_named_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for hint, line in (("phicli chat --device cpu", "phicli chat --path mine --device cpu"),
                       ("phicli chat --model tiny", "phicli chat --model tiny"),
                       ("phicli serve --port 0", "phicli serve --port 0")):
        error = Missing("not here", hint=hint)
        Following(Settings(), {"path": "mine"}, settings_of(ChatConfig)).complete(error, "chat")
        assert error.hint == line


def test_who_has_no_adapter_of_a_name_trains_one_of_that_name(cli, tmp_path, tiny):
    (tmp_path / "ft" / "other").mkdir(parents=True)
    (tmp_path / "ft" / "other" / "adapter_config.json").write_text("{}")
    at = ("--model", "tiny", "--root", tmp_path)
    tried = f"  try: phicli finetune --model tiny --root {tmp_path} --name "
    for command in (("merge", "--adapter", "trip"), ("optimize", "--merge", "trip"),
                    ("export", "--to", "peft", "--adapter", "trip"),
                    ("finetune", "--from-adapter", "trip", "--base", tiny)):
        done = cli(*command, *at)
        assert done.code == 3 and f"{tried}trip\n" in done.err and "there are: other" in done.err, command
    assert f"{tried}mine\n" in cli("optimize", "--base", tiny, *at, "--adapter", "mine=nowhere").err
    assert "  try: a folder that is there, or a name" in cli("merge", "--adapter", "no/where", *at).err


def test_chat_names_the_models_that_are_here(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "models" / "tiny"
    (root / "onnx-ao").mkdir(parents=True)
    write_manifest(root / "onnx-ao", Manifest("optimize", {}, {}))
    remember_model(root, "tiny")
    done = cli("chat", "-p", "Hello")
    assert done.code == 4
    assert "  try: phicli chat --model tiny\n   or: phicli run --model microsoft/" in done.err


def test_quantize_leads_on_and_is_the_last_model(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHICLI_QUANTIZE_SAMPLES", "2")
    (tmp_path / "calibration.txt").write_text("All is well in the town by the sea. " * 60)
    command = ("quantize", "--model", "tiny", "--seq-len", "32", "--calibration", "calibration.txt", "--device", "cpu")
    planned = cli(*command, "--dry-run", "--json")
    forecast, = json.loads(planned.out)
    assert (forecast["action"], forecast["why"], forecast["last_time"]) == ("run", "not made", False)
    assert forecast["seconds"] > 1 and forecast["memory"] > 1e8 and forecast["disk"] > 1e6
    assert {path.name for path in tmp_path.iterdir()} == {"calibration.txt"} and "nothing was done" in planned.err
    assert after(planned)[0].startswith("phicli quantize --model tiny --")
    assert after(cli(*command)) == ["phicli finetune --model tiny --device cpu"]
    forecast, = json.loads(cli(*command, "--dry-run", "--json").out)
    assert (forecast["action"], forecast["why"]) == ("nothing", "up to date")
    monkeypatch.setenv("PHICLI_QUANTIZE_SEQ_LEN", "32")
    table = cli("run", "--dry-run", "--until", "finetune", "--device", "cpu", "--max-steps", "3")
    assert [line.split()[1] for line in table.out.splitlines() if "│" in line] == ["inspect", "quantize", "finetune"]
    assert "last time" in table.out and "not made" in table.out and "models/tiny/ft/travel" in table.err
    refused = cli("finetune", "--base", "nowhere/at/all", "--dry-run")
    assert refused.code == 3 and not (tmp_path / "models" / "tiny" / "ft").exists()


def test_deploy_to_docker_leads_on_with_its_model_and_root(cli, optimized, tmp_path):
    done = cli("deploy", "--to", "docker", "--model", "tiny", "--root", optimized, "--output", tmp_path / "image")
    assert after(done) == [f"phicli deploy --model tiny --root {optimized} --to kubernetes"]


@no_gpu
def test_what_cannot_run_here_is_said_to_run_elsewhere(cli, tmp_path, tiny):
    for command in ("finetune --base tiny --device cuda", "run --model tiny --device cuda"):
        done = cli(*command.split(), "--dry-run")
        assert not after(done) and done.err.endswith(f"{ELSEWHERE}phicli {command}\n")
    built = cli("optimize", "--base", tiny, "--root", tmp_path, "--device", "gpu")
    assert [line for line in built.err.splitlines() if line.startswith("next")] == [
        f"{ELSEWHERE}phicli {command} --root {tmp_path}" for command in ("chat", "evaluate")]
    again = cli("optimize", "--base", tiny, "--root", tmp_path, "--device", "cuda", "--dry-run", "--progress", "json")
    assert [json.loads(line) for line in again.err.splitlines() if '"next"' in line] == [
        {"event": "next", "command": f"phicli optimize --root {tmp_path} --base {tiny} --device cuda"}]


def test_a_result_in_a_folder_of_its_own_is_named_to_the_next_step(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("quantize", "--model", "tiny", "--algorithm", "rtn", "--output", "mine", "--device", "cpu")
    assert after(done) == ["phicli finetune --model tiny --device cpu --base mine"]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Where to?", "response": "To the sea."}\n' * 8)
    trained = cli("finetune", "--model", "tiny", "--base", "mine", "--data", "rows.jsonl", "--max-steps", "1",
                  "--device", "cpu", "--lora-r", "2", "--eval-split", "0")
    assert after(trained) == ["phicli optimize --model tiny --device cpu --base mine"]


def test_verify_leads_to_the_root_of_what_was_named(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "awq").mkdir(parents=True)
    write_manifest(tmp_path / "lab" / "awq", Manifest("quantize", {}, {}))
    remember_model(tmp_path / "lab", "tiny")
    for place in ("lab", "lab/awq"):
        assert after(cli("verify", place)) == ["phicli status --root lab"]
    (tmp_path / "lab" / "phicli-model.json").write_text("{}")
    assert after(cli("verify", "lab/awq")) == ["phicli status --root lab"]


def test_two_roots_of_one_model_are_told_apart(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "tiny"):
        (tmp_path / "models" / name / "onnx-ao").mkdir(parents=True)
        write_manifest(tmp_path / "models" / name / "onnx-ao", Manifest("optimize", {}, {}))
        remember_model(tmp_path / "models" / name, "tiny")
    assert ("  try: phicli chat --model tiny --root models/mine\n   or: phicli chat --model tiny\n"
            "   or: phicli run --model microsoft/") in cli("chat", "-p", "Hello").err
    assert "next: phicli chat --model tiny --root models/mine\n" in cli("list").err


DAMAGES = {  # of a model's folder -> what is tried, FOLDER for the folder
    "model.safetensors is missing": "hf download OWNER/NAME --local-dir FOLDER",
    "model.safetensors is cut": "hf download OWNER/NAME --local-dir FOLDER",
    "tokenizer.json is missing": "hf download OWNER/NAME --local-dir FOLDER",
    "config.json is cut": "hf download OWNER/NAME --local-dir FOLDER",
    "config.json is missing": "a folder with config.json, tokenizer.json and *.safetensors, or an id",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["quantize --model", "finetune --model tiny --base", "doctor --device cpu --model"])
def test_against_damaged_models_whole_ones_help(cli, tmp_path, tiny, command, damage):
    folder = shutil.copytree(tiny, tmp_path / "model")
    name, _, what = damage.partition(" is ")
    (folder / name).unlink() if what == "missing" else (folder / name).write_bytes(b"{")
    done = cli(*command.split(), folder, "--root", tmp_path / "root")
    text = done.out if command.startswith("doctor") else done.err
    tried = text.partition("try: ")[2].splitlines()[0]
    assert done.code in (3, 4) and DAMAGES[damage].replace("FOLDER", str(folder)) in tried


def test_what_helps_is_a_command_or_a_sentence_about_the_fault(cli, tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    shutil.copytree(tiny, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    assert "  try: hf download owner/name --force-download\n" in cli("quantize", "--model", snapshot).err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text("{")
    for command in (("optimize", "--base", tiny, "--adapter", "mine=mine"), ("merge", "--model", "tiny", "-a", "mine")):
        assert "  try: a folder as PEFT writes it, with adapter_config.json" in cli(*command).err
    assert "  try: --calibration FILE" in cli("quantize", "--model", "tiny", "--calibration", "none.txt").err


@pytest.mark.parametrize(("command", "hint"), [
    ("run --workflow FILE", "another --workflow (Workflow of Olive's "),
    ("inspect --chat-template FILE", "another --chat-template (File with a chat template"),
    ("finetune --base tiny --dry-run --chat-template FILE", "another --chat-template (File with a chat template"),
    ("serve --root ROOT --api-key-file FILE", "another --api-key-file (File with such keys"),
    ("quantize --model tiny --calibration FILE", "--calibration FILE with "),
])
@pytest.mark.parametrize("file", ["none.yaml", "folder"])
def test_of_files_that_are_none_the_option_is_told(cli, optimized, tmp_path, monkeypatch, command, hint, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    done = cli(*command.replace("FILE", file).replace("ROOT", str(optimized)).split())
    assert done.code in (3, 4) and f"  try: {hint}" in done.err


def test_a_template_of_the_environment_is_told_too(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHICLI_CHAT_TEMPLATE", "none.jinja")
    assert "  try: another --chat-template (" in cli("inspect", "--model", "tiny").err
