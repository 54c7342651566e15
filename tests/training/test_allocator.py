"""How torch takes a GPU's memory while an adapter is trained; torch tells it where there is no GPU, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = Path(__file__).parents[2] / "data" / "data_sample_travel.jsonl"
RUN = """
import os, sys, phicli
from phicli.training import passes

class Asking(passes.Trainer):  # torch reads the settings when it takes memory for the first time
    def run(self):
        import torch
        print(torch._C._accelerator_getAllocatorSettings())
        return super().run()

passes.Trainer = Asking
phicli.finetune(base=sys.argv[1], root=sys.argv[2], data=[sys.argv[3]], max_steps=1, eval_split=0, device="cpu",
                publish_anyway=True)
print(os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
"""


@pytest.mark.parametrize(("own", "expected"), [
    ({}, ["expandable_segments:True", "None"]),
    ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, ["max_split_size_mb:64", "None"]),
    ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, ["max_split_size_mb:64", "max_split_size_mb:64"]),
], ids=["as it comes", "user's", "user's, by the older name"])
@pytest.mark.skipif(sys.platform != "linux", reason="segments grow on Linux")
def test_memory_is_taken_in_segments_that_grow_unless_the_user_says_how(awq, tmp_path, own, expected):
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name} | own
    done = subprocess.run([sys.executable, "-c", RUN, awq, tmp_path, ROWS], env=environment,
                          capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout.splitlines() == expected
