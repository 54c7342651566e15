"""Adapters: what is refused, and what a file must hold."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from phicli.checkpoints.adapter_settings import NoSlot
from phicli.checkpoints.copies import check_copies
from phicli.checkpoints.peft_folder import read_peft
from phicli.errors import BadInput
from phicli.export import graph_inputs
from phicli.export.adapters import check_adapter, convert_adapter
from phicli.export.matching import assemble, match
from phicli.export.slots import Slot, read_slots

SIZES = {"qkv_proj": (8, 16), "o_proj": (8, 8), "gate_proj": (8, 12), "up_proj": (8, 12)}
QKV = (8, 4, 4)


@pytest.fixture
def model(tmp_path):
    """A folder with a graph of two layers whose projections are named as the builder names them."""
    folder = tmp_path / "model"
    folder.mkdir()
    nodes, weights = [], []
    for layer in range(2):
        for module, (inputs, outputs) in SIZES.items():
            name = f"/model/layers.{layer}/{'attn' if module in ('qkv_proj', 'o_proj') else 'mlp'}/{module}/MatMul"
            weights.append(numpy_helper.from_array(np.ones((inputs, outputs), np.float32), f"w{len(weights)}"))
            nodes.append(helper.make_node("MatMul", ["x", weights[-1].name], [f"{name}/output_0"], name))
    outputs = [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in nodes]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])], outputs,
                              weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
              folder / "model.onnx")
    decoder = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_size": 2, "num_hidden_layers": 2}
    model = {"type": "llama", "vocab_size": 8, "context_length": 8, "eos_token_id": 0, "decoder": decoder}
    (folder / "genai_config.json").write_text(json.dumps({"model": model}))
    graph_inputs.add_slots(folder / "model.onnx")
    return folder


def peft(folder, modules: dict[str, tuple[int, int]], rank: int = 2, layers=(0, 1), **config):
    """A PEFT folder with random matrices; modules: "self_attn.q_proj" -> (inputs, outputs)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in layers:
        for module, (inputs, outputs) in modules.items():
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"] = rng.standard_normal((rank, inputs)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = rng.standard_normal((outputs, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4, **config}))
    return folder


def run(model, adapter_file=None) -> dict[str, np.ndarray]:
    """All outputs of the graph for x = 1, by onnxruntime itself."""
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {"x": np.ones((1, 8), np.float32)}
    if adapter_file:
        tensors = onnxruntime.AdapterFormat.read_adapter(str(adapter_file)).get_parameters()
        inputs |= {name: value.numpy() for name, value in tensors.items()}
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, (o[0] for o in session.run(names, inputs)), strict=True))


def test_slots_change_nothing_without_an_adapter(model):
    for value in run(model).values():
        np.testing.assert_array_equal(value, 8)


@pytest.mark.parametrize("rslora", [False, True])
def test_fused_and_split_projections_get_the_exact_update(model, tmp_path, rslora):
    """q and v land in rows of qkv, halves of gate_up in gate and up; o has no update."""
    modules = {"self_attn.q_proj": (8, 8), "self_attn.v_proj": (8, 4), "mlp.gate_up_proj": (8, 24)}
    folder = peft(tmp_path / "peft", modules, rank=4, use_rslora=rslora)
    file = tmp_path / "a.onnx_adapter"
    convert_adapter(model, read_peft(folder), file, folder)
    check_adapter(model, file)
    tensors, found = load_file(folder / "adapter_model.safetensors"), run(model, file)
    scaling = 4 / (2 if rslora else 4)
    for layer in range(2):
        def update(module, layer=layer):
            a, b = (tensors[f"base_model.model.model.layers.{layer}.{module}.lora_{x}.weight"] for x in "AB")
            return scaling * b.astype(np.float64) @ a.astype(np.float64) @ np.ones(8)

        wanted = np.concatenate([update("self_attn.q_proj"), np.zeros(4), update("self_attn.v_proj")])
        gate_up, at = update("mlp.gate_up_proj"), f"/model/layers.{layer}"
        np.testing.assert_allclose(found[f"{at}/attn/qkv_proj/MatMul/output_0"], 8 + wanted, rtol=1e-5)
        np.testing.assert_allclose(found[f"{at}/mlp/gate_proj/MatMul/output_0"], 8 + gate_up[:12], rtol=1e-5)
        np.testing.assert_allclose(found[f"{at}/mlp/up_proj/MatMul/output_0"], 8 + gate_up[12:], rtol=1e-5)
        np.testing.assert_array_equal(found[f"{at}/attn/o_proj/MatMul/output_0"], 8)


def test_a_fused_module_on_separate_slots(tmp_path):
    """DirectML's graph has q, k and v apart, Phi's adapter one qkv_proj."""
    folder = peft(tmp_path / "peft", {"self_attn.qkv_proj": (8, 16)}, layers=[0])
    loras = read_peft(folder)
    slots = [Slot(0, name, 8, size, TensorProto.FLOAT) for name, size in zip(("q_proj", "k_proj", "v_proj"), QKV,
                                                                             strict=True)]
    products = []
    for slot, parts in match(loras, slots, QKV, folder).items():
        a, b = assemble(slot, parts)
        products.append((a @ b).T)
    (lora,) = loras.values()
    np.testing.assert_allclose(np.concatenate(products), 2 * lora.b.astype(np.float64) @ lora.a.astype(np.float64))


@pytest.mark.parametrize("config", [
    {"peft_type": "LOHA"}, {"peft_type": "LOKR"}, {"use_dora": True}, {"modules_to_save": ["norm"]},
    {"bias": "all"}, {"lora_bias": True}, {"init_lora_weights": "pissa_niter_4"}, {"use_qalora": True},
    {"trainable_token_indices": [1]},
])
def test_what_is_not_plain_lora_is_named(tmp_path, config):
    folder = peft(tmp_path / "peft", {"self_attn.o_proj": (8, 8)}, **config)
    with pytest.raises(BadInput) as caught:
        read_peft(folder)
    named = next(iter(config.values() if "peft_type" in config or "init_lora_weights" in config else config))
    assert str(named) in str(caught.value) and caught.value.hint


def renamed(folder, copy, change, file="adapter_model.safetensors", **config):
    """A folder with the same matrices under other names."""
    copy.mkdir()
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(dict(change(name, tensor) for name, tensor in tensors.items()), copy / file)
    known = json.loads((folder / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config or known))
    return copy


@pytest.mark.parametrize("name", [
    lambda name: name.replace(".weight", ".default.weight"), lambda name: name.replace(".weight", ".mine.weight"),
    lambda name: f"module.{name}", lambda name: name.replace("model.model.", "model._orig_mod.model."),
])
def test_names_of_other_savers(tmp_path, name):
    folder = peft(tmp_path / "peft", {"self_attn.o_proj": (8, 8)})
    other = renamed(folder, tmp_path / "other", lambda old, tensor: (name(old), tensor))
    assert same(read_peft(other), read_peft(folder))


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(
        np.array_equal(one[name].a, two[name].a) and np.array_equal(one[name].b, two[name].b)
        and one[name].scaling == two[name].scaling for name in one)


def test_an_adapter_of_mlx(tmp_path):
    folder = peft(tmp_path / "peft", {"self_attn.o_proj": (8, 8)})

    def change(name, tensor):
        name = name.removeprefix("base_model.model.").removesuffix(".weight")
        return name.replace("lora_A", "lora_a").replace("lora_B", "lora_b"), np.ascontiguousarray(tensor.T)

    given = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0}, "num_layers": 2}
    other = renamed(folder, tmp_path / "mlx", change, "adapters.safetensors", **given)
    assert same(read_peft(other), read_peft(folder))
    given["lora_parameters"] = {"rank": "2"}
    with pytest.raises(BadInput, match="rank or scale is no number"):
        read_peft(renamed(folder, tmp_path / "bad", change, "adapters.safetensors", **given))


def test_saved_copies_of_embeddings(tiny, tmp_path):
    """The model's own are nothing to an adapter; trained ones are more than slots can hold."""
    folder = peft(tmp_path / "peft", {"self_attn.o_proj": (8, 8)})
    tensors = load_file(folder / "adapter_model.safetensors")
    own = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    key = "base_model.model.model.embed_tokens.weight"
    for rows, remarks in ((own.astype(np.float32), 0), (np.concatenate([own, own[:2]]), 1)):
        save_file({**tensors, key: rows}, folder / "adapter_model.safetensors")
        assert len(check_copies(folder, tiny)) == remarks and len(read_peft(folder)) == 2
    trained = own.copy()
    trained[7, 3] += 0.01
    save_file({**tensors, key: trained}, folder / "adapter_model.safetensors")
    with pytest.raises(NoSlot, match="it was trained"):
        check_copies(folder, tiny)


@pytest.mark.parametrize(("modules", "layers", "message"), [
    ({"self_attn.o_proj": (8, 9)}, (0, 1), "o_proj of layer 0 has 8 inputs and 9 outputs"),
    ({"self_attn.o_proj": (8, 8)}, (0, 1, 2), "no o_proj in layer 2"),
    ({"mlp.fc1": (8, 8)}, (0,), "no fc1 in layer 0"),
])
def test_an_adapter_for_another_model(model, tmp_path, modules, layers, message):
    folder = peft(tmp_path / "peft", modules, layers=layers)
    with pytest.raises(BadInput, match=message):
        convert_adapter(model, read_peft(folder), tmp_path / "a.onnx_adapter", folder)
    assert not (tmp_path / "a.onnx_adapter").exists()


def test_damaged_peft_folders(tmp_path):
    folder = peft(tmp_path / "peft", {"self_attn.o_proj": (8, 8)})
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(BadInput, match="truncated"):
        read_peft(folder)
    tensors = {k: v for k, v in load_file(peft(tmp_path / "b", {"o_proj": (8, 8)}) / weights.name).items() if "A" in k}
    save_file(tensors, weights)
    with pytest.raises(BadInput, match="do not go together"):
        read_peft(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(BadInput, match="pickled"):
        read_peft(folder)
    config.write_text("[1]")
    with pytest.raises(BadInput, match="damaged adapter settings"):
        read_peft(folder)
    config.unlink()
    with pytest.raises(BadInput, match=r"no adapter_config\.json"):
        read_peft(folder)


def test_bfloat16_weights(tmp_path):
    import torch
    from safetensors.torch import save_file as save_torch

    folder = peft(tmp_path / "peft", {"self_attn.o_proj": (8, 8)}, layers=[0])
    tensors = {k: torch.tensor(v).bfloat16() for k, v in load_file(folder / "adapter_model.safetensors").items()}
    save_torch(tensors, folder / "adapter_model.safetensors")
    (lora,) = read_peft(folder).values()
    np.testing.assert_array_equal(lora.a.astype(np.float32), tensors[min(tensors)].float().numpy())


def written(file, tensors):
    adapter = onnxruntime.AdapterFormat()
    adapter.set_parameters({k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in tensors.items()})
    adapter.export_adapter(str(file))
    return file


def test_check_adapter_sees_what_genai_lets_pass(model, tmp_path):
    _, slots = read_slots(model)
    good = {}
    for slot in slots:
        good |= graph_inputs.tensors(slot, np.ones((slot.inputs, 3)), np.ones((3, slot.outputs)))
    check_adapter(model, written(tmp_path / "good", good))
    first = "lora_A.0.qkv_proj"
    for name, change, message in (
        ("partial", {k: v for k, v in good.items() if ".1." not in k}, "lacks"),
        ("strange", good | {"lora_A.9.qkv_proj": good[first]}, "has lora_A.9.qkv_proj"),
        ("shape", good | {first: np.ones((9, 3), np.float32)}, r"is \[9, 3\]"),
        ("dimensions", good | {first: np.ones((8, 3, 1), np.float32)}, r"is \[8, 3, 1\]"),
        ("type", good | {first: np.ones((8, 3), np.float16)}, "number type"),
        ("rank", good | {first: np.ones((8, 2), np.float32)}, "differ in rank"),
    ):
        with pytest.raises(BadInput, match=message):
            check_adapter(model, written(tmp_path / name, change))
    (tmp_path / "torn").write_bytes((tmp_path / "good").read_bytes()[:100])
    with pytest.raises(BadInput, match="damaged adapter"):
        check_adapter(model, tmp_path / "torn")
    with pytest.raises(BadInput, match="no such adapter file"):
        check_adapter(model, tmp_path / "none")


def test_models_without_slots(model, tmp_path):
    graph = onnx.load(model / "model.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, model / "model.onnx")
    with pytest.raises(BadInput, match="takes no adapters"):
        read_slots(model)
    (model / "model.onnx").write_bytes(b"\xff" * 30)
    with pytest.raises(BadInput, match="damaged model"):
        read_slots(model)
    (model / "model.onnx").unlink()
    with pytest.raises(BadInput, match=r"no model\.onnx"):
        read_slots(model)


def test_values_beyond_the_models_float_type_are_refused(model, tmp_path):
    folder = peft(tmp_path / "peft", {"self_attn.o_proj": (8, 8)})
    tensors = {k: np.full_like(v, np.nan) for k, v in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="not finite"):
        convert_adapter(model, read_peft(folder), tmp_path / "a", folder)
