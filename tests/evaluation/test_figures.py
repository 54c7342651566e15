"""Perplexity, KL and agreement against torch's own functions."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from phicli.evaluation.figures import Agreement, Likelihood, LogProbFile, log_softmax


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return rng.normal(0, 8, (2, 50, 300)).astype(np.float32)


def test_log_softmax(logits):
    expected = torch.log_softmax(torch.from_numpy(logits[0]).double(), -1).numpy()
    np.testing.assert_allclose(log_softmax(logits[0]), expected, rtol=0, atol=1e-12)
    huge = log_softmax(np.array([[1e30, 0.0]], np.float32))
    assert huge[0, 0] == 0 and huge[0, 1] == pytest.approx(-1e30)


def test_agreement_over_several_rows(logits):
    p, q = map(torch.from_numpy, logits.astype(np.float64))
    found = Agreement()
    for rows in (slice(0, 20), slice(20, 50)):
        found.add(log_softmax(logits[0, rows]), log_softmax(logits[1, rows]))
    expected = F.kl_div(torch.log_softmax(q, -1), torch.log_softmax(p, -1), log_target=True, reduction="batchmean")
    assert found.kl == pytest.approx(expected.item(), rel=1e-12)
    assert found.top1 == (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    same = Agreement()
    same.add(log_softmax(logits[0]), log_softmax(logits[0]))
    assert (same.kl, same.top1) == (0.0, 1.0)


def test_perplexity_over_several_rows(logits):
    targets = np.arange(50) * 3
    found = Likelihood()
    for rows in (slice(0, 20), slice(20, 50)):
        found.add(log_softmax(logits[0, rows]), targets[rows])
    expected = F.cross_entropy(torch.from_numpy(logits[0]).double(), torch.from_numpy(targets)).exp().item()
    assert found.perplexity == pytest.approx(expected, rel=1e-12)


def test_log_probs_come_back_from_the_file_as_often_as_wanted(tmp_path, logits):
    file = LogProbFile(tmp_path)
    rows = [log_softmax(logits[0, :7]), log_softmax(logits[1, :1])]
    for row in rows:
        file.add(row)
    for _ in range(2):
        for row, back in zip(rows, file, strict=True):
            np.testing.assert_array_equal(back, row.astype(np.float32))
    file.close()
    assert list(tmp_path.iterdir()) == []
