"""The quantized integers reach the ONNX file bit for bit."""

import numpy as np
import pytest
import torch
from onnx_checkpoints import nearest_awq, random_model
from onnx_integers import read_integers
from safetensors.torch import load_file

from phicli import optimize
from phicli.export.loading import float_projections
from phicli.export.repacking import from_awq, from_olive

PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # output that each 4-bit place of AWQ's int32 words holds, from the lowest


def awq_integers(words: torch.Tensor) -> np.ndarray:
    """AWQ int32 (rows, columns / 8) to (rows, columns), place by place."""
    out = np.zeros((words.shape[0], words.shape[1] * 8), np.uint8)
    for place, column in enumerate(PLACES):
        out[:, column::8] = (words.numpy().view(np.uint32) >> (4 * place)) & 15
    return out


def of_checkpoint(tensors: dict, module: str) -> tuple[np.ndarray, ...]:
    """Integers (out, in), scales and zeros (out, groups) of one linear of an AWQ checkpoint."""
    return (awq_integers(tensors[f"{module}.qweight"]).T, tensors[f"{module}.scales"].float().numpy().T,
            awq_integers(tensors[f"{module}.qzeros"]).T)


@pytest.mark.parametrize("device", ["cuda", "dml"])
def test_phi_integers_are_those_of_the_awq_checkpoint(tmp_path, tiny, device):
    """qkv is one matrix in both (on DirectML three), gate_up_proj is split by the builder."""
    base = nearest_awq(tiny, tmp_path / "awq")
    folder, _ = optimize(root=tmp_path, base=str(base), device=device, activations="int8",
                         head="int8", cuda_graph=False)
    tensors = load_file(base / "model.safetensors")
    found = dict(read_integers(folder))
    parts = ("q_proj", "k_proj", "v_proj") if device == "dml" else ("qkv_proj",)
    assert sorted(found) == sorted(f"{n}.{m}" for n in range(4)
                                   for m in (*parts, "o_proj", "gate_proj", "up_proj", "down_proj"))
    for layer in range(4):
        for module, built in (("self_attn.qkv_proj", parts), ("self_attn.o_proj", ("o_proj",)),
                              ("mlp.gate_up_proj", ("gate_proj", "up_proj")), ("mlp.down_proj", ("down_proj",))):
            wanted = of_checkpoint(tensors, f"model.layers.{layer}.{module}")
            for k, part in enumerate(zip(*(vars(found[f"{layer}.{name}"]).values() for name in built), strict=True)):
                np.testing.assert_array_equal(np.concatenate(part), wanted[k])


def test_llama_integers_are_those_of_the_awq_checkpoint(tmp_path, tiny):
    """q, k and v are fused by the builder; what the checkpoint leaves in float is not quantized."""
    original = random_model(tmp_path / "original", tiny, "llama")
    base = nearest_awq(original, tmp_path / "awq", skip=("1.mlp.up_proj",))
    folder, _ = optimize(root=tmp_path, base=str(base), device="cpu", activations="int8",
                         head="int8", cuda_graph=False)
    tensors, found = load_file(base / "model.safetensors"), dict(read_integers(folder))
    assert "1.up_proj" not in found and "1.gate_proj" in found
    assert float_projections(base) == ["/model/layers.1/mlp/up_proj/MatMul"]
    for layer in range(2):
        three = [of_checkpoint(tensors, f"model.layers.{layer}.self_attn.{n}_proj") for n in "qkv"]
        for have, want in zip(vars(found[f"{layer}.qkv_proj"]).values(), zip(*three, strict=True), strict=True):
            np.testing.assert_array_equal(have, np.concatenate(want))
        for have, want in zip(vars(found[f"{layer}.down_proj"]).values(),
                              of_checkpoint(tensors, f"model.layers.{layer}.mlp.down_proj"), strict=True):
            np.testing.assert_array_equal(have, want)


def test_a_scale_of_zero_keeps_its_integers():
    """The builder's own loader divides by the scale."""
    words = torch.randint(-(2**31), 2**31, (64, 4), dtype=torch.int64).to(torch.int32)
    tensors = {"qweight": words, "qzeros": words[:2], "scales": torch.zeros(2, 32, dtype=torch.float16)}
    projection = from_awq(tensors, 4)
    nibbles = torch.stack([projection.qweight & 15, projection.qweight >> 4], dim=-1).reshape(32, 64)
    np.testing.assert_array_equal(nibbles.numpy(), awq_integers(words).T)
    assert (projection.in_features, projection.out_features, projection.group_size) == (64, 32, 32)


def test_symmetric_checkpoints_get_the_middle_as_zero_point():
    weight = torch.zeros(4, 24, dtype=torch.uint8)
    projection = from_olive({"qweight": weight, "scales": torch.ones(4, 3)}, 4)
    assert projection.qzeros.tolist() == [0x88] * 8  # three groups take two bytes
    assert projection.rows(slice(1, 3)).qzeros.numel() == 4
