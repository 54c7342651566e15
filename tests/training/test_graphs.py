"""Steps through CUDA graphs against steps without, on a GPU."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from phicli.checkpoints.loading import load_base
from phicli.text import Encoded
from phicli.training.checkpoint import trainable
from phicli.training.fitting import Fitting
from phicli.training.loss import make_even_batch
from phicli.training.recipe import Recipe
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
