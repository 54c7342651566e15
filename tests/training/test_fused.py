"""Our functions of a training step against torch's and peft's: interpreted on a CPU, and as they are on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CHECKS = ("norm", "gate", "rotary", "dropout", "product", "loss", "unpacking", "families", "recomputed", "kept",
          "packed_base")


def checked(here: bool) -> dict[str, str]:
    """Name -> what is wrong."""
    path = os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, HERE / "fused_here.py"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": str(int(here))})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def wrong() -> dict[str, str]:
    pytest.importorskip("triton")
    return checked(here=True)


@pytest.mark.parametrize("name", CHECKS)
def test_interpreted(wrong, name):
    assert name not in wrong, wrong[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_on_a_gpu():
    wrong = checked(here=False)
    assert not wrong, "\n".join(wrong.values())


def test_all_checks_are_asked_for(wrong):
    assert not wrong.keys() - set(CHECKS)
