"""Steps through CUDA graphs against steps without, on a GPU."""

import gc
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from phicli.artifacts.stages import read_manifest
from phicli.checkpoints.loading import load_base
from phicli.hardware.devices import available_memory, limited_memory
from phicli.text import Encoded
from phicli.training.checkpoint import trainable
from phicli.training.fitting import Fitting
from phicli.training.loss import make_even_batch
from phicli.training.recipe import Recipe
from phicli.training.recompute import LAYER, MLP, NOTHING
from phicli.training.rows import EncodedRows, prepare_rows
from phicli.training.training import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")]
ROWS = prepare_rows(EncodedRows([Encoded.counted_from([(7 * i + j) % 400 + 8 for j in range(12 + 3 * i)], 4)
                                 for i in range(24)]), Fitting(256))


@pytest.mark.parametrize("dense", [True, False])
def test_graphs_give_the_same_weights(awq, dense, monkeypatch):
    monkeypatch.setattr("phicli.resources.estimates.UNPACKED_SHARE", 0.25 if dense else 0.0)
    recipe = Recipe(max_steps=18, batch_size=4, learning_rate=1e-3, schedule="linear", seed=0, checkpoint_steps=100)
    weights, losses, graphs = [], [], []
    for use_graphs in (True, False):
        base = load_base(awq, "cuda", torch.bfloat16)
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=8, lora_dropout=0.1, target_modules=["qkv_proj", "down_proj"]))
        trainer = Trainer(model, ROWS, recipe)
        if not use_graphs:
            monkeypatch.setattr("phicli.training.training.make_batch", make_even_batch)
            trainer.gradients.drop()
        trainer.run()
        graphs.append(len(trainer.gradients.graphs))
        losses.append(trainer.state.losses)
        weights.append({name: p.detach().clone() for name, p in trainable(model).items()})
    assert graphs[0] >= 2
    assert graphs[1] == 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=2e-3), name


@pytest.mark.parametrize("level", [MLP, LAYER])
def test_what_is_computed_twice_stays_in_graphs_and_takes_less(awq, level):
    recipe = Recipe(max_steps=18, batch_size=4, learning_rate=1e-3, schedule="linear", seed=0, checkpoint_steps=100)
    losses, peaks = [], []
    for one in (NOTHING, level):
        base = load_base(awq, "cuda", torch.bfloat16)
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=8, lora_dropout=0.0, target_modules=["qkv_proj", "down_proj"]))
        trainer = Trainer(model, ROWS, recipe)
        if one:
            trainer._recompute(one)
        torch.cuda.reset_peak_memory_stats()
        trainer.run()
        assert len(trainer.gradients.graphs) >= 2
        losses.append(trainer.state.losses)
        peaks.append(torch.cuda.max_memory_allocated())
        del trainer, model, base
        gc.collect()  # forward functions that were put in hold their modules
        torch.cuda.empty_cache()
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert peaks[1] < peaks[0]


def test_masks_of_dropout_are_the_same_the_second_time_in_a_graph(awq):
    """With dropout, steps in graphs and steps without learn alike, though their masks differ."""
    recipe = Recipe(max_steps=18, batch_size=4, learning_rate=1e-3, schedule="linear", seed=0, checkpoint_steps=100)
    losses = []
    for use_graphs in (True, False):
        base = load_base(awq, "cuda", torch.bfloat16)
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=8, lora_dropout=0.1, target_modules=["qkv_proj", "down_proj"]))
        trainer = Trainer(model, ROWS, recipe)
        trainer._recompute(LAYER)
        if not use_graphs:
            trainer.gradients.drop()
        trainer.run()
        losses.append(trainer.state.losses)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_limit_of_memory_is_kept(awq):
    held = torch.cuda.memory_reserved()
    with limited_memory("cuda", held + 200e6):
        assert available_memory("cuda") <= 200e6
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(400_000_000, dtype=torch.uint8, device="cuda")
    torch.empty(400_000_000, dtype=torch.uint8, device="cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus_train_as_one(awq, tmp_path, cli, data_file):
    found = []
    for gpus, *shard in (("1",), ("2",), ("2", "--shard")):
        root = tmp_path / "-".join((gpus, *shard))
        shutil.copytree(awq, root / "awq")
        done = cli("finetune", "--root", root, "--data", data_file, "--lora-r", "8", "--lora-dropout", "0",
                   "--max-steps", "30", "--gpus", gpus, *shard)
        assert done.code == 0, done.err
        found.append(read_manifest(root / "ft" / "travel").quality)
    assert [one.get("gpus") for one in found] == [None, 2, 2]
    for one in found[1:]:
        assert one["held_out_loss_after"] == pytest.approx(found[0]["held_out_loss_after"], rel=0.01)


def test_a_model_that_reads_values_back_is_trained_without_graphs(awq):
    """What a broken capture leaves behind is cleared: random numbers are drawn again, of dropout too."""
    base = load_base(awq, "cuda", torch.bfloat16)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=8, lora_dropout=0.1, target_modules=["qkv_proj", "down_proj"]))
    layer = base.get_decoder().layers[1]
    layer.register_forward_hook(lambda module, args, out: float(out.sum()) and None)
    trainer = Trainer(model, ROWS, Recipe(max_steps=8, batch_size=4, learning_rate=1e-3, schedule="linear", seed=0,
                                          checkpoint_steps=100))
    trainer.run()
    assert not trainer.gradients.use_graphs and trainer.state.step == 8
    assert trainer.state.losses[-1] < trainer.state.losses[0]
    torch.randn(2, device="cuda")
