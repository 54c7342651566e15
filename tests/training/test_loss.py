"""The loss in parts against transformers' own over whole logits."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from phicli.text import Encoded
from phicli.training import loss
from phicli.training.loss import RowLoss, count_targets, make_batch, make_even_batch

SPANS = ((10, 40, 12), (50, 62, 1), (70, 99, 28))
ROWS = [Encoded.counted_from(range(begin, end), start) for begin, end, start in SPANS]


def plain_loss(model) -> torch.Tensor:
    """Row by row, unpadded, float64 sum."""
    total = torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        logits = model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        total -= sum(logits[i - 1, row.ids[i]] for i in row.targets)
    return total


def gemma():
    """A model that caps its logits, so that a projection of its hidden states is not all of it."""
    config = Gemma2Config(vocab_size=120, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=0.5)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("which", ["tiny", "gemma"])
def test_loss_and_gradient(tiny, which, monkeypatch):
    monkeypatch.setattr(loss, "MOST_POSITIONS", 7)
    model = gemma() if which == "gemma" else AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model.requires_grad_(False)
    weight = model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)
    row_loss = RowLoss(model)
    assert (row_loss.head is model.get_output_embeddings()) == (which == "tiny")
    ours, even, plain = row_loss(make_batch(ROWS)), row_loss(make_even_batch(ROWS)), plain_loss(model)
    assert float(even) == pytest.approx(float(plain), rel=1e-5)
    assert float(ours) == pytest.approx(float(plain), rel=1e-5)
    (ours_gradient,), (plain_gradient,) = (torch.autograd.grad(x, weight) for x in (ours, plain))
    assert torch.allclose(ours_gradient, plain_gradient, rtol=1e-3, atol=1e-4 * float(plain_gradient.abs().max()))


def test_count_targets():
    assert count_targets(ROWS) == 18 + 11 + 1


@pytest.mark.parametrize(("longest", "length"), [(5, 16), (64, 64), (65, 80), (130, 144), (500, 512), (700, 704)])
def test_even_batches_come_in_few_lengths(longest, length):
    rows = [Encoded.counted_from(list(range(longest)), 2), Encoded.counted_from([1, 2, 3], 1)]
    batch = make_even_batch(rows)
    assert batch.ids.shape == (2, length)
    assert int((batch.labels != loss.IGNORED).sum()) == count_targets(rows)
