"""A quantization that is killed or interrupted in some layer leaves nothing half-written, and the next one works."""

import signal
import subprocess
import sys

import pytest

FEW = ("quantize", "--model", "tiny", "--device", "cpu", "--samples", "8", "--seq-len", "128")
CODE = """
import os, signal, sys
from phicli.cli import reporter
from phicli.cli.main import main

number, layer = int(sys.argv[1]), int(sys.argv[2])
plain, done = reporter.Lines.advance, []

def advance(self, *args, **figures):  # called at the end of each layer
    plain(self, *args, **figures)
    done.append(self.title)
    if done.count("quantize") == layer:
        os.kill(os.getpid(), number)

reporter.Lines.advance = advance
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(("number", "layer"), [(signal.SIGKILL, 3), (signal.SIGINT, 2)])
def test_the_earlier_result_stays_and_the_next_run_works(cli, tmp_path, number, layer):
    first = cli(*FEW, "--root", tmp_path, "--rounding", "nearest")
    assert first.code == 0, first.err
    before = (tmp_path / "awq" / "model.safetensors").read_bytes()
    plan = tmp_path / "plan.safetensors"
    command = [sys.executable, "-c", CODE, int(number), layer, *FEW, "--root", tmp_path, "--save-plan", plan]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == (130 if number == signal.SIGINT else -number), done.stderr
    assert done.stdout == "" and not plan.exists()
    assert (tmp_path / "awq" / "model.safetensors").read_bytes() == before
    if number == signal.SIGINT:
        assert not list(tmp_path.glob(".awq.new-*"))
        assert "stopped at quantize, 2/4 layers: of this step nothing is kept" in done.stderr
    after = cli(*FEW, "--root", tmp_path)
    assert after.code == 0, after.err
    assert (tmp_path / "awq" / "model.safetensors").read_bytes() != before
    assert not list(tmp_path.glob(".awq.*-*")) and not list(tmp_path.glob("*.new"))
