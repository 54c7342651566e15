"""The ONNX model computes what the checkpoint and the adapters stand for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_checkpoints import Reference, compare, nearest_awq, peft_updates, random_adapter, random_model
from onnx_integers import read_integers

from phicli import optimize
from phicli.export.kept import read_adapter
from phicli.inference.session import Session

EXACT = {"activations": "fp32", "head": "float", "adapter_weights": "float"}
TEXT = ("Rome is a city in Italy. Where should I eat there, and what should I see first? Take the train early, "
        "bring water, and book the museum before you travel. ") * 6


def build(root: Path, base: Path, adapters: dict[str, Path], **settings) -> Path:
    defaults = {"device": "cpu", "activations": "int8", "head": "int8", "cuda_graph": False}
    folder, _ = optimize(root=root, base=str(base), adapters=[f"{k}={v}" for k, v in adapters.items()],
                         **{**defaults, **settings})
    return folder


@pytest.fixture(scope="module")
def phi(tmp_path_factory, tiny):
    """The built-in model rounded to AWQ, with two adapters: all linears, and with rsLoRA some of them."""
    root = tmp_path_factory.mktemp("phi")
    base = nearest_awq(tiny, root / "awq")
    adapters = {
        "travel": random_adapter(tiny, root / "peft-travel", r=8, lora_alpha=16,
                                 target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        "other": random_adapter(tiny, root / "peft-other", r=3, lora_alpha=5, use_rslora=True,
                                target_modules=["qkv_proj", "gate_up_proj"], layers_to_transform=[1, 3]),
    }
    session = Session(build(root, base, adapters, **EXACT))
    return root, base, adapters, session, Reference.of_awq(tiny, base)


def test_without_an_adapter_it_is_the_awq_model(phi):
    _, _, _, session, reference = phi
    ids = session.codec.encode_text(TEXT)
    kl, same = compare(reference.logits(ids), session.logits(ids))
    assert kl < 1e-6 and same >= 0.99


@pytest.mark.parametrize("name", ["travel", "other"])
def test_with_an_adapter_it_is_the_awq_model_with_lora(phi, name):
    _, _, adapters, session, reference = phi
    ids = session.codec.encode_text(TEXT)
    wanted = reference.logits(ids, peft_updates(adapters[name]))
    kl, same = compare(wanted, session.logits(ids, name))
    assert kl < 1e-6 and same >= 0.99
    assert compare(wanted, session.logits(ids))[0] > 1e-2  # the adapter matters


def test_a_switch_leaves_nothing_behind(phi):
    _, _, _, session, _ = phi
    ids = session.codec.encode_text(TEXT)
    plain, other = session.logits(ids), session.logits(ids, "other")
    session.logits(ids, "travel")
    np.testing.assert_array_equal(session.logits(ids, "other"), other)
    np.testing.assert_array_equal(session.logits(ids), plain)


def test_the_default_head_keeps_the_agreement(phi, tmp_path):
    _, base, adapters, session, reference = phi
    ids = session.codec.encode_text(TEXT)
    fresh = Session(build(tmp_path, base, {"travel": adapters["travel"]}, activations="fp32"))
    kl, same = compare(reference.logits(ids, peft_updates(adapters["travel"])), fresh.logits(ids, "travel"))
    assert kl < 1.5e-3 and same >= 0.97  # a third of it from the adapter, in int8 by default


@pytest.mark.parametrize(("kind", "head", "limit", "least"), [
    ("llama", "float", 1e-6, 0.99), ("qwen2", "float", 1e-6, 0.99),
    ("qwen2", "int8", 5e-4, 0.95),  # likeliest tokens of a random model are hardly likelier than the next
])
def test_grouped_query_attention_with_parts_adapted(tmp_path, tiny, kind, head, limit, least):
    """q, k and v are fused in the graph; the adapter has some of them, with ranks and scalings of their own.

    Qwen2 has biases, and one matrix for embedding and head.
    """
    original = random_model(tmp_path / "original", tiny, kind)
    base = nearest_awq(original, tmp_path / "awq", skip=("1.mlp.down_proj", "0.self_attn.o_proj"))
    adapter = random_adapter(original, tmp_path / "peft", r=4, lora_alpha=8, rank_pattern={"v_proj": 7},
                             alpha_pattern={"v_proj": 3}, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    folder = build(tmp_path, base, {"travel": adapter}, activations="fp32", head=head, adapter_weights="float")
    session, reference = Session(folder), Reference.of_awq(original, base)
    ids = session.codec.encode_text(TEXT)
    for name, updates in ((None, None), ("travel", peft_updates(adapter))):
        kl, same = compare(reference.logits(ids, updates), session.logits(ids, name))
        assert kl < limit and same >= least
    hidden, qkv, wide = 384, 640, 640
    columns = 2 * hidden + qkv, hidden + 2 * wide, wide + hidden  # q and v have an A each, and one B has room for both
    [file] = folder.glob("adapters.data-*")
    assert 0 <= file.stat().st_size - 2 * 2 * 16 * sum(columns) < 14 * 4096  # ranks of 16, in fp16; pages
    back = read_adapter(folder, "travel")
    for name, update in peft_updates(adapter).items():
        layer, module = int(name.split(".")[2]), name.rpartition(".")[2]
        whole, rows = {"q_proj": ("qkv_proj", slice(0, 384)), "v_proj": ("qkv_proj", slice(512, 640)),
                       "up_proj": ("gate_up_proj", slice(640, 1280))}.get(module, (module, slice(None)))
        found = back[f"layers.{layer}.{whole}"]
        np.testing.assert_allclose((found.b @ found.a)[rows], update, atol=2e-3 * np.abs(update).max())


@pytest.mark.parametrize(("kind", "skip"), [
    ("phi", ("0.self_attn.qkv_proj",)), ("phi", ("1.self_attn.qkv_proj",)),
    ("qwen2", ("0.self_attn.q_proj", "0.self_attn.k_proj", "0.self_attn.v_proj")), ("qwen2", ("0.self_attn.k_proj",)),
])
def test_attention_inputs_left_in_float_in_one_layer_only(tmp_path, tiny, kind, skip):
    """q, k and v are three products in that layer and one in the others; its neighbours keep theirs."""
    original = tiny if kind == "phi" else random_model(tmp_path / "original", tiny, kind)
    base = nearest_awq(original, tmp_path / "awq", skip=skip)
    targets = ["qkv_proj", "o_proj"] if kind == "phi" else ["q_proj", "v_proj"]
    adapter = random_adapter(original, tmp_path / "peft", r=4, target_modules=targets)
    reference = Reference.of_awq(original, base)
    for layout in ("inputs", "resident"):
        session = Session(build(tmp_path / layout, base, {"travel": adapter}, adapter_layout=layout, **EXACT))
        ids = session.codec.encode_text(TEXT)
        for name, updates in ((None, None), ("travel", peft_updates(adapter))):
            kl, same = compare(reference.logits(ids, updates), session.logits(ids, name))
            assert kl < 1e-6 and same >= 0.99, (layout, name)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, False)])
def test_checkpoints_of_olive(tmp_path, tiny, bits, symmetric):
    from phicli.checkpoints.loading import load_base
    from phicli.workflow.olive import run_pass

    base = tmp_path / "rtn"
    run_pass("Rtn", {"bits": bits, "group_size": 128, "sym": symmetric}, tiny, base)
    session = Session(build(tmp_path, base, {}, **EXACT))
    ids = session.codec.encode_text(TEXT)
    with torch.no_grad():
        wanted = load_base(base, "cpu", torch.float32)(torch.tensor([ids])).logits[0].numpy()
    kl, same = compare(wanted, session.logits(ids))
    assert kl < 1e-6 and same >= 0.99


def test_an_unquantized_model_is_rounded_by_the_builder(tmp_path, tiny):
    adapter = random_adapter(tiny, tmp_path / "peft", r=2, target_modules=["o_proj", "gate_up_proj"])
    folder = build(tmp_path, tiny, {"travel": adapter}, **EXACT)
    state = Reference(tiny, {}).model.state_dict()
    weights = {name: ((w.integers.reshape(*w.scales.shape, -1).astype(np.float64) - w.zeros[..., None])
                      * w.scales[..., None]).reshape(len(w.integers), -1) for name, w in read_integers(folder)}
    for layer in range(4):
        prefix, read = f"model.layers.{layer}", weights.__getitem__
        state[f"{prefix}.self_attn.qkv_proj.weight"] = torch.tensor(read(f"{layer}.qkv_proj")).float()
        state[f"{prefix}.self_attn.o_proj.weight"] = torch.tensor(read(f"{layer}.o_proj")).float()
        gate_up = np.concatenate([read(f"{layer}.gate_proj"), read(f"{layer}.up_proj")])
        state[f"{prefix}.mlp.gate_up_proj.weight"] = torch.tensor(gate_up).float()
        state[f"{prefix}.mlp.down_proj.weight"] = torch.tensor(read(f"{layer}.down_proj")).float()
    session, reference = Session(folder), Reference(tiny, state)
    ids = session.codec.encode_text(TEXT)
    kl, same = compare(reference.logits(ids, peft_updates(adapter)), session.logits(ids, "travel"))
    assert kl < 1e-6 and same >= 0.99


@pytest.mark.gpu
def test_on_a_gpu_in_half_precision(phi, tmp_path):
    """fp16 activations round, and embeddings have 8 bits, so less is asked for."""
    _, base, adapters, _, reference = phi
    session = Session(build(tmp_path, base, adapters, device="cuda"), "cuda")
    ids = session.codec.encode_text(TEXT)
    for name in (None, *adapters):
        wanted = reference.logits(ids, peft_updates(adapters[name]) if name else None)
        kl, same = compare(wanted, session.logits(ids, name))
        assert kl < 1e-3 and same >= 0.97
