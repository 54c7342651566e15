"""Nothing that a model or an adapter folder holds is run: no pickle, no code of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guard import guarded

import phicli

DATA = Path(__file__).parents[2] / "data"
FEW = ["--device", "cpu"]
PICKLES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (exec, (f"open({self.target!r}, 'w').close()",))


@pytest.fixture
def fired(tmp_path):
    """The file that a bomb would write; each bomb is known to work."""
    target = tmp_path / "fired"
    torch.save(Bomb(target), tmp_path / "bomb")
    torch.load(tmp_path / "bomb", weights_only=False)
    assert target.exists()
    target.unlink()
    return target


def plant(folder, bomb):
    for name in PICKLES:
        shutil.copyfile(bomb, folder / name)


def phi(*argv):
    return [sys.executable, "-m", "phicli", *map(str, argv)]


def test_pickles_beside_safetensors_are_never_opened(tmp_path, tiny, fired):
    model, root = tmp_path / "model", tmp_path / "root"
    shutil.copytree(tiny, model)
    plant(model, tmp_path / "bomb")
    environment = {**os.environ, "PYTHONPATH": str(Path(phicli.__file__).parents[1])}
    commands = [
        phi("quantize", "--model", model, "--root", root, "--samples", 4, "--seq-len", 64, *FEW),
        phi("finetune", "--base", model, "--root", root, "--max-steps", 1, "--lora-r", 2, *FEW, "--data",
            DATA / "data_sample_travel.jsonl"),
        phi("optimize", "--base", model, "--root", root, "--device", "cpu"),
        phi("evaluate", "--model", model, "--root", root, "--rows", 2, *FEW, "--eval-data",
            DATA / "data_eval_travel.jsonl"),
    ]
    for number, command in enumerate(commands):
        if number == 2:
            plant(root / "ft" / "travel", tmp_path / "bomb")
            (root / "ft" / "travel" / "phicli.json").unlink()  # it would be called damaged
        seen = guarded(command, tmp_path / f"guard{number}", environment)
        if number == 0:
            opened = guarded([sys.executable, "-c", f"open({str(model / PICKLES[0])!r})"], tmp_path / "x", environment)
            assert len(opened.pickles) == 1  # the guard sees what it should
        assert seen.code == 0, seen.err
        assert seen.pickles == [] and not fired.exists(), command


def test_pickles_in_place_of_safetensors_are_refused(cli, tmp_path, tiny, fired, optimized):
    model, adapter = tmp_path / "model", tmp_path / "root" / "ft" / "travel"
    shutil.copytree(tiny, model)
    (model / "model.safetensors").rename(model / "other.safetensors")
    plant(model, tmp_path / "bomb")
    finetune = cli("finetune", "--base", model, "--root", tmp_path / "r", "--max-steps", 1, "--device", "cpu", "--data",
                   DATA / "data_sample_travel.jsonl")
    assert finetune.code == 3
    (model / "other.safetensors").unlink()
    for command in (("quantize", "--model", model), ("finetune", "--base", model, "--data",
                                                     DATA / "data_sample_travel.jsonl"), ("optimize", "--base", model)):
        done = cli(*command, "--root", tmp_path / "r", "--device", "cpu")
        assert done.code == 3 and "pickled weights (.bin) are not opened" in done.err, done.err
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["o_proj"],
                                                             "base_model_name_or_path": "tiny"}))
    plant(adapter, tmp_path / "bomb")
    for command in (("optimize", "--base", tiny), ("evaluate", "--model", "tiny", "--rows", 1, "--eval-data",
                                                   DATA / "data_eval_travel.jsonl")):
        done = cli(*command, "--root", tmp_path / "root", "--device", "cpu")
        assert done.code == 3 and "pickled weights (.bin) are not opened" in done.err, done.err
    assert not fired.exists()


@pytest.mark.parametrize("known", [True, False], ids=["known architecture", "unknown architecture"])
def test_code_of_a_model_is_never_run(tmp_path, tiny, known):
    """Also when somebody, or a pipe, answers "y" to the question that transformers would ask."""
    model, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny, model)
    (model / "own.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import PretrainedConfig as Config\n"
                                  "Model = Tokenizer = object\n")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model",
                          "AutoTokenizer": ["own.Tokenizer", None]}
    config["model_type"] = config["model_type"] if known else "strange"
    (model / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"auto_map": config["auto_map"]}))
    root = ("--root", tmp_path / "root")
    environment = {**os.environ, "PYTHONPATH": str(Path(phicli.__file__).parents[1])}
    for command in (phi("quantize", "--model", model, *root, "--samples", 4, "--seq-len", 64, *FEW),
                    phi("finetune", "--base", model, *root, "--max-steps", 1, *FEW, "--data",
                        DATA / "data_sample_travel.jsonl"),
                    phi("optimize", "--base", model, *root, "--device", "cpu"),
                    phi("doctor", "--model", model, *root)):
        done = subprocess.run(command, input="y\ny\ny\n", capture_output=True, text=True, env=environment, timeout=120)
        assert not ran.exists(), command
        if known:
            assert done.returncode == 0, done.stderr
        else:
            assert done.returncode == (4 if "doctor" in command else 3)
            assert "never runs, and there is no option for it" in done.stdout + done.stderr
