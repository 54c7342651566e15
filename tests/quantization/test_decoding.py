"""Rows whose keys and values stay in place, as they write calibration text: the logits of transformers' own cache."""

import pytest
import torch
from family_models import FAMILIES, make

from phicli.checkpoints.loading import load_base
from phicli.quantization.decoding import Growing, Placed, step_of

LENGTH = 48
ROWS = torch.randint(10, 4000, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def compare(model, device, dtype):
    """The largest difference of probabilities over a prompt and the tokens after it, each given to both ways."""
    placed, growing, rows = Placed(model, LENGTH), Growing(model), ROWS.to(device)
    differences = []
    with torch.no_grad():
        for begin, end in ((0, 5), *((at, at + 1) for at in range(5, LENGTH))):
            ours, theirs = (way(rows[:, begin:end]).float().softmax(-1) for way in (placed, growing))
            differences.append((ours - theirs).abs().max().item())
    return placed, max(differences)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_keys_in_place_give_the_same_logits(family, tmp_path, tiny):
    model = load_base(make(family, tmp_path / "model", tiny), "cpu", torch.float32)
    assert isinstance(step_of(model, LENGTH), Growing)  # a CPU has no graphs
    _, difference = compare(model, "cpu", torch.float32)
    assert difference < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_steps_are_cuda_graphs(family, tmp_path, tiny):
    model = load_base(make(family, tmp_path / "model", tiny), "cuda", torch.float32)
    placed, difference = compare(model, "cuda", torch.float32)
    assert difference < 1e-4
    assert placed.graph is not None
