"""AWQ by two processes that share out the calibration and the searches: as one would do it."""

import pytest
import torch
from safetensors.torch import load_file

from phicli import quantize
from phicli.artifacts.stages import read_manifest
from phicli.checkpoints.awq import low_first
from phicli.checkpoints.int4 import unpack
from phicli.errors import BadInput
from phicli.hardware.ranks import Ranks
from phicli.quantization.grid import GridShape
from phicli.quantization.quantize import quantize_checkpoint


def test_two_processes_quantize_as_one(tmp_path, cli, monkeypatch):
    one = quantize("tiny", root=tmp_path / "one", device="cpu", samples=7, seq_len=64, refine=2)
    monkeypatch.setattr("phicli.steps.quantize.count_gpus", lambda wanted, device: int(wanted))  # of processes here
    monkeypatch.setattr("phicli.steps.quantize.check_gpus", lambda wanted, device: None)
    done = cli("quantize", "--model", "tiny", "--root", tmp_path / "two", "--device", "cpu", "--samples", "7",
               "--seq-len", "64", "--refine", "2", "--save-plan", tmp_path / "plan.safetensors", "--gpus", "2")
    assert done.code == 0, done.err
    assert "quantizing on 2 GPUs" in done.err and (tmp_path / "plan.safetensors").is_file()
    two = read_manifest(tmp_path / "two" / "awq")
    assert two.quality["calibration_tokens"] == one.manifest.quality["calibration_tokens"]
    assert two.quality["layer_errors"] == pytest.approx(one.manifest.quality["layer_errors"], rel=0.02)
    assert two.quality["refined"] == pytest.approx(one.manifest.quality["refined"], rel=0.02)
    weights, others = (load_file(folder / "model.safetensors") for folder in (one.folder, tmp_path / "two" / "awq"))
    assert weights.keys() == others.keys()
    # Sums in another order tip a few integers that lie between two, and later layers make up for those.
    first = [name for name in weights if ".layers.0." in name and name.endswith(".qweight")]
    same = torch.cat([(unpack(low_first(weights[n]), 4) == unpack(low_first(others[n]), 4)).flatten() for n in first])
    assert same.float().mean() > 0.99


def test_what_cannot_be_shared_out_is_refused(tiny, tmp_path, cli):
    for options, message in ((("--algorithm", "rtn"), "--gpus goes with phicli's own AWQ"),
                             (("--device", "cpu"), "not with --device cpu")):
        done = cli("quantize", "--model", "tiny", "--root", tmp_path, "--gpus", "2", *options)
        assert done.code == 2 and message in done.err, done.err
    with pytest.raises(BadInput, match="1 calibration sequences cannot be shared out to 2 GPUs"):
        quantize_checkpoint(tiny, tmp_path, torch.zeros(1, 8, dtype=torch.long), shape=GridShape(), ranks=Ranks(0, 2))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus_quantize_as_one(tmp_path, cli):
    errors = []
    for gpus in ("1", "2"):
        root = tmp_path / gpus
        done = cli("quantize", "--model", "tiny", "--root", root, "--samples", "32", "--generated", "0", "--gpus", gpus)
        assert done.code == 0, done.err
        errors.append(read_manifest(root / "awq").quality["layer_errors"])
    assert errors[1] == pytest.approx(errors[0], rel=0.02)
