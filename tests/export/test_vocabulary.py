"""Embeddings and head in integers, one constant where the model ties them."""

import onnx
import pytest
import torch
from onnx_checkpoints import Reference, compare, nearest_awq, random_model

from phicli import Session, optimize
from phicli.export.vocabulary import round_rows

IDS = list(range(7, 400, 3))


@pytest.fixture(scope="module")
def tied(tmp_path_factory, tiny):
    root = tmp_path_factory.mktemp("tied")
    original = random_model(root / "original", tiny, "qwen2")
    return original, nearest_awq(original, root / "awq")


def built(base, root, **settings):
    return optimize(root=root, base=str(base), **{"device": "cpu", "activations": "fp32", **settings}).folder


def constants(folder):
    """The graph's nodes by op, and its constants' bytes by name."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    sizes = {t.name: int(e.value) for t in graph.initializer for e in t.external_data if e.key == "length"}
    return {node.op_type: node for node in graph.node}, sizes


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_rounded_to_the_nearest_of_their_grid(bits):
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)).half()
    table = round_rows(weight, bits)
    assert table.qzeros is None and (table.out_features, table.in_features) == (40, 96)
    integers = table.qweight if bits == 8 else torch.stack([table.qweight & 15, table.qweight >> 4], -1).flatten(-2)
    scales = table.scales.view(40, -1, 1)
    found = (integers.float() - 2 ** (bits - 1)) * scales
    wanted = weight.float().view(found.shape)
    assert ((found - wanted).abs() <= 0.501 * scales).all()
    assert scales.shape[1] == 3  # 32 numbers share one: no larger size fits
    assert round_rows(torch.ones(4, 24), bits) is None


@pytest.mark.parametrize(("precision", "limit"), [("int8", 1e-3), ("int4", 0.2)])
def test_a_tied_matrix_stands_once(tied, tmp_path, precision, limit):
    original, base = tied
    folder = built(base, tmp_path, head=precision)
    nodes, sizes = constants(folder)
    head = "lm_head.MatMulNBits.qweight"
    assert nodes["GatherBlockQuantized"].input[0] == head and nodes["MatMulNBits"].input[1] == head
    assert sizes[head] == 4096 * 384 * (8 if precision == "int8" else 4) // 8
    assert sum(size for name, size in sizes.items() if "layers" not in name) < 1.5 * sizes[head]
    with Session(folder) as session:
        kl, _ = compare(Reference.of_awq(original, base).logits(IDS), session.logits(IDS))
    assert kl < limit


def test_another_precision_makes_the_model_stale(tied, tmp_path):
    float_too, shared = (constants(built(tied[1], tmp_path, embeddings=kind))[1] for kind in ("float", "int8"))
    assert float_too["model.embed_tokens.weight"] == 4 * 4096 * 384
    assert "model.embed_tokens.weight" not in shared


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_matrices_that_are_not_tied_are_both_rounded(tmp_path, tiny, device):
    original = random_model(tmp_path / "original", tiny, "llama")
    base = nearest_awq(original, tmp_path / "awq")
    folder = built(base, tmp_path, device=device, activations="int8")
    nodes, sizes = constants(folder)
    assert nodes["GatherBlockQuantized"].input[0] == "model.embed_tokens.qweight"
    assert sizes["model.embed_tokens.qweight"] == sizes["lm_head.MatMulNBits.qweight"] == 4096 * 384
    with Session(folder, "cpu") as session:
        kl, _ = compare(Reference.of_awq(original, base).logits(IDS), session.logits(IDS))
    assert kl < 2e-2  # activations in int8, or fp16


@pytest.mark.gpu
def test_a_gpu_reads_the_shared_matrix_as_a_cpu_does(tied, tmp_path):
    original, base = tied
    for head in ("int8", "int4"):
        with Session(built(base, tmp_path, device="cuda", head=head), "cuda") as session:
            kl, _ = compare(Reference.of_awq(original, base).logits(IDS), session.logits(IDS))
        assert kl < (1e-2 if head == "int8" else 0.2)
