"""`phicli finetune` through the real main(), and what plain peft makes of its adapter."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from training.bases import quantized
from transformers import AutoModelForCausalLM

from phicli.artifacts.stages import read_manifest
from phicli.checkpoints.loading import load_base
from phicli.dataset import load_rows
from phicli.dataset.contents import RowParser
from phicli.errors import BadInput
from phicli.text import TextCodec
from phicli.training.loss import RowLoss, count_targets, make_batch

DATA = Path(__file__).parents[2] / "data"
QUICK = ("--data", DATA / "data_sample_travel.jsonl", "--lora-r", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def root(tiny, tmp_path_factory):
    """A root with a quantized model and an adapter `travel` of 12 steps."""
    from phicli.cli.main import main

    root = tmp_path_factory.mktemp("finetune")
    quantized(tiny, root)
    assert main(list(map(str, ("finetune", "--root", root, *QUICK, "--max-steps", "12")))) == 0
    return root


def held_out_loss(model, codec) -> float:
    rows = [codec.encode_conversation(row) for row in load_rows(DATA / "data_eval_travel.jsonl", RowParser())]
    with torch.no_grad():
        return float(RowLoss(model)(make_batch(rows))) / count_targets(rows)


def tree(folder: Path) -> dict[str, int]:
    """Files and when they were written, folders, logs left out."""
    return {str(p): p.stat().st_mtime_ns if p.is_file() else 0 for p in folder.rglob("*") if "logs" not in p.parts}


def test_second_run_is_up_to_date_and_prints_the_folder_alone(cli, root):
    before = tree(root)
    done = cli("finetune", "--root", root, *QUICK, "--max-steps", "12")
    assert (done.code, done.out) == (0, f"{root / 'ft' / 'travel'}\n")
    assert "is up to date" in done.err
    assert "held out" in done.err
    assert tree(root) == before


def test_manifest_says_what_went_in_and_came_out(cli, root):
    done = cli("finetune", "--root", root, *QUICK, "--max-steps", "12", "--json")
    document = json.loads(done.out)
    quality = document["quality"]
    assert quality["held_out_loss_after"] < quality["held_out_loss_before"] - 0.7  # half the perplexity is ln 2
    assert quality["train_loss_after"] < quality["held_out_loss_before"]  # steps are of rows of unlike difficulty
    assert quality["tokens"] > 12 * 8 * 20
    assert set(document["inputs"]) == {"base", "data"}
    assert document["settings"]["lora_alpha"] == 16.0
    assert set(document["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((root / "ft/travel/adapter_config.json").read_text())["base_model_name_or_path"] == \
        str(root / "awq")


def test_plain_peft_loads_it_on_both_bases_and_unseen_questions_gain(root, tiny):
    codec = TextCodec(tiny)
    for load in (lambda: AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32),
                 lambda: load_base(root / "awq", "cpu", torch.float32)):
        base = load()
        before = held_out_loss(base, codec)
        adapted = PeftModel.from_pretrained(base, root / "ft" / "travel").eval()
        assert held_out_loss(adapted.get_base_model(), codec) < before - 0.7


@pytest.mark.parametrize(("method", "base"), [("dora", "awq"), ("loha", "awq"), ("lokr", "awq"), ("lora", "tiny"),
                                              ("loftq", "rtn"), ("lora", "rtn")])
def test_methods_and_bases(cli, root, tiny, tmp_path_factory, method, base):
    folder = {"awq": root / "awq", "tiny": tiny}.get(base) or root.parent / "rtn-base" / "rtn"
    if not folder.exists():
        quantized(tiny, folder.parent, algorithm="rtn")
    done = cli("finetune", "--root", root, "--model", "tiny", *QUICK, "--max-steps", "2", "--name", f"{method}-{base}",
               "--method", method, "--base", folder, "--learning-rate", "0.001", "--target-modules", "o_proj,down_proj",
               "--eval-split", "0.02")
    assert done.code == 0, done.err
    assert ("cannot be swapped" in done.err) == (method in ("dora", "loha", "lokr"))  # said before it trains
    adapter = Path(done.out.strip())
    kind = json.loads((adapter / "adapter_config.json").read_text())
    assert kind["peft_type"] == {"loha": "LOHA", "lokr": "LOKR"}.get(method, "LORA")
    assert kind.get("use_dora", False) == (method == "dora")
    assert kind["target_modules"] == ["down_proj", "o_proj"]
    adapted = PeftModel.from_pretrained(load_base(folder, "cpu", torch.float32), adapter)
    changed = [m for m in adapted.modules() if "default" in (getattr(m, "lora_A", None) or getattr(
        m, "hada_w1_a", None) or getattr(m, "lokr_w1", None) or {})]
    assert len(changed) == 8


def test_a_cpu_made_for_bfloat16_trains_in_it(cli, root, monkeypatch):
    losses = []
    for half in (False, True):
        monkeypatch.setattr("phicli.training.passes.cpu_takes_bfloat16", lambda hidden, half=half: half and hidden > 0)
        done = cli("finetune", "--root", root, "--model", "tiny", *QUICK, "--max-steps", "6", "--name", f"half-{half}",
                   "--json")
        assert done.code == 0, done.err
        losses.append(json.loads(done.out)["quality"]["held_out_loss_after"])
        adapter = load_file(root / "ft" / f"half-{half}" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert 0 < abs(losses[0] - losses[1]) < 0.01 * losses[0]


def test_loftq_starts_nearer_to_the_original_and_refuses_awq(cli, root, tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    from phicli.training.loftq import start_from_residual

    folder = quantized(tiny, tmp_path, algorithm="rtn")
    adapted = get_peft_model(load_base(folder, "cpu", torch.float32),
                             LoraConfig(r=64, lora_alpha=128, target_modules=["down_proj"]))
    start_from_residual(adapted, tiny)
    for layer in (0, 3):
        original = load_file(tiny / "model.safetensors")[f"model.layers.{layer}.mlp.down_proj.weight"].float()
        module = adapted.get_base_model().model.layers[layer].mlp.down_proj
        before = (module.get_base_layer().weight - original).norm()
        assert (module.get_base_layer().weight + module.get_delta_weight("default") - original).norm() < 0.75 * before
    refused = cli("finetune", "--root", root, "--model", "tiny", *QUICK, "--name", "q", "--method", "loftq")
    assert refused.code == 3
    assert "plain rounding" in refused.err
    assert not (root / "ft" / "q").exists()
    with pytest.raises(BadInput, match="no plain rounding"):
        start_from_residual(adapted, _shuffled(tiny, tmp_path / "other"))


def _shuffled(model: Path, target: Path) -> Path:
    """Another model of the same shape."""
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    save_file({name: t.flip(-1).contiguous() for name, t in tensors.items()}, target / "model.safetensors")
    return target


def test_killed_and_started_again_it_ends_the_same(cli, root):
    """kill -9 after a checkpoint; the same command then gives the bytes of an uninterrupted run."""
    def options(name):
        return ("finetune", "--root", root, *QUICK, "--max-steps", "6", "--checkpoint-steps", "2", "--name", name)

    assert cli(*options("whole")).code == 0
    state = root / "ft" / ".killed.checkpoint" / "state.json"
    with subprocess.Popen([sys.executable, "-m", "phicli", *map(str, options("killed"))], env=os.environ,
                          stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not state.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (root / "ft" / "killed").exists()
    again = cli(*options("killed"))
    assert again.code == 0
    assert "going on from step" in again.err
    assert not state.exists()
    whole, killed = (root / "ft" / name / "adapter_model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    qualities = [read_manifest(root / "ft" / name).quality for name in ("whole", "killed")]
    assert all(qualities[0][name] == qualities[1][name] for name in ("held_out_loss_after", "curve", "rows_seen"))


@pytest.fixture
def broken(tmp_path, root):
    """Files that cannot be used, by name."""
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "json.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 16 + '{"prompt": \n')
    (tmp_path / "field.jsonl").write_text('{"prompt": "a", "antwort": "b"}\n')
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"prompt": f"{i} " + "where " * 300, "response": "there"})
                                                 + "\n" for i in range(9)))
    (tmp_path / "same.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 16)
    shutil.copytree(root / "awq", tmp_path / "truncated")
    weights = tmp_path / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    shutil.copytree(root / "awq", tmp_path / "unknown")
    config = tmp_path / "unknown" / "config.json"
    config.write_text(config.read_text().replace('"awq"', '"hqq"'))
    (tmp_path / "unknown" / "phicli.json").unlink()  # a folder of somebody else's
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(("options", "code", "message"), [
    (("--data", "{}/none.jsonl"), 3, "none.jsonl"),
    (("--data", "{}/empty.jsonl"), 3, "no rows"),
    (("--data", "{}/json.jsonl"), 3, "json.jsonl:17"),
    (("--data", "{}/field.jsonl"), 3, "field.jsonl:1"),
    (("--data", "{}/long.jsonl", "--seq-len", "32"), 3, "has a token to learn within 32 tokens"),
    (("--data", "{}/same.jsonl"), 3, "all rows ask the same (16), and are held out"),
    (("--eval-data", "{}/none.jsonl"), 3, "none.jsonl"),
    (("--eval-data", "{}/field.jsonl"), 3, "field.jsonl:1"),
    (("--text-template", "no fields"), 3, "text template"),
    (("--base", "{}/none"), 3, "no such model folder"),
    (("--base", "{}/empty"), 3, "no config.json"),
    (("--base", "{}/truncated"), 3, "truncated"),
    (("--base", "{}/unknown"), 3, "'hqq' cannot be trained on"),
    (("--root", "{}/empty"), 4, "phicli quantize"),
    (("--name", "a/b"), 3, "an adapter's name"),
    (("--name", ".."), 3, "an adapter's name"),
    (("--target-modules", "q_proj"), 3, "down_proj, gate_up_proj, o_proj, qkv_proj"),
    (("--max-steps", "0"), 2, "--max-steps"),
    (("--epochs", "0"), 2, "--epochs"),
    (("--eval-steps", "0"), 2, "--eval-steps"),
    (("--too-long", "truncate"), 2, "cut, drop, split"),
    (("--keep", "first"), 2, "best, last"),
    (("--report-to", "wandb"), 2, "none, tensorboard, mlflow"),
    (("--from-adapter", "{}/none"), 3, "no such adapter folder"),
    (("--from-adapter", "{}/empty"), 3, "no adapter_config.json"),
    (("--from-adapter", "travel", "--lora-alpha", "4"), 2, "the adapter to continue from has 16"),
    (("--from-adapter", "travel", "--target-modules", "o_proj"), 2, "has down_proj, gate_up_proj, o_proj, qkv_proj"),
    (("--from-adapter", "travel", "--method", "dora"), 2, "--from-adapter goes on with LoRA"),
    (("--from-adapter", "travel", "--name", "travel"), 2, "would replace the adapter"),
    (("--eval-split", "1"), 2, "--eval-split"),
    (("--method", "qlora"), 2, "lora"),
])
def test_wrong_input_is_one_message_and_nothing_written(cli, root, broken, options, code, message):
    before = tree(root) | tree(broken)
    given = {"--root": root, QUICK[0]: QUICK[1], "--name": "new"}
    given |= zip(options[::2], (o.format(broken) for o in options[1::2]), strict=True)
    done = cli("finetune", *QUICK[2:], *(part for both in given.items() for part in both))
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("error: ") == 1
    assert tree(root) | tree(broken) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_asked_for_and_not_there(cli, root):
    done = cli("finetune", "--root", root, *QUICK[:-1], "cuda", "--name", "new")
    assert (done.code, done.out) == (4, "")
    assert "CUDA" in done.err
    assert not (root / "ft" / "new").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_follows_the_loss_curve_of_the_cpu(cli, root):
    losses = []
    for device in ("cpu", "cuda"):
        done = cli("finetune", "--root", root, *QUICK[:-1], device, "--max-steps", "12", "--name", device, "--json",
                   "--lora-dropout", "0")
        losses.append(json.loads(done.out)["quality"]["held_out_loss_after"])
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
