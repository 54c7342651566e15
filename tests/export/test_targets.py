"""Devices and providers: which are built, which are refused, and what the built graphs are."""

import json
import sys

import numpy as np
import onnx
import pytest
from onnx_checkpoints import nearest_awq

from phicli import BadInput, Missing, Session, UsageError, optimize
from phicli.export.repacking import MIDDLES, Projection
from phicli.export.targets import Target, choose_target
from phicli.hardware.devices import EXECUTION_PROVIDERS

IDS = list(range(40, 72))


@pytest.mark.parametrize(("device", "provider", "target"), [
    ("cpu", None, Target("cpu", "cpu")), ("webgpu", None, Target("webgpu", "gpu")),
    ("cpu", "OpenVINOExecutionProvider", Target("openvino", "cpu")), ("gpu", "openvino", Target("openvino", "gpu")),
    ("openvino", None, Target("openvino", "cpu")), ("gpu", "NvTensorRTRTXExecutionProvider", Target("tensorrt", "gpu")),
    ("auto", "DmlExecutionProvider", Target("dml", "gpu")), ("cpu", "CPUExecutionProvider", Target("cpu", "cpu")),
])
def test_a_device_and_a_provider_name_a_target(device, provider, target):
    assert choose_target(device, provider) == target


@pytest.mark.parametrize(("device", "provider", "words"), [
    ("npu", None, "static shapes"), ("npu", "QNNExecutionProvider", "onnxruntime-qnn"), ("qnn", None, "Snapdragon"),
    ("npu", "vitisai", "amd-quark"), ("npu", "openvino", "optimum-intel"), ("coreml", None, "has no CoreML"),
])
def test_what_cannot_be_built_says_what_it_takes(device, provider, words):
    with pytest.raises(Missing, match=words):
        choose_target(device, provider)


@pytest.mark.parametrize(("device", "provider", "words"), [
    ("cpu", "webgpu", "runs on gpu, not on --device cpu"), ("cuda", "webgpu", "not the same"),
    ("gpu", "cpu", "runs on cpu"), ("wbgpu", None, "is not one of"), ("gpu", "CudaProvider", "is not one of"),
])
def test_what_does_not_go_together_is_refused(device, provider, words):
    with pytest.raises(UsageError, match=words):
        choose_target(device, provider)


def test_a_refusal_at_the_command(cli, tmp_path):
    done = cli("optimize", "--model", "tiny", "--root", tmp_path, "--device", "npu", "--provider", "qnn")
    assert done.code == 4 and "onnxruntime-qnn" in done.err and not done.out
    assert f"  try: phicli optimize --model tiny --root {tmp_path} --device cpu\n" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    done = cli("export", "--model", "tiny", "--root", tmp_path, "--to", "olive", "--variant", "npu")
    assert f"  try: phicli export --model tiny --root {tmp_path} --to olive --variant cpu\n" in done.err


@pytest.mark.parametrize(("provider", "package"), [("webgpu", "onnxruntime-ep-webgpu"), ("dml", "directml")])
def test_a_provider_without_its_package_says_what_to_install(cli, two_graphs, monkeypatch, provider, package):
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    done = cli("chat", "Hello", "--path", two_graphs / "onnx-ao", "--provider", provider)
    assert done.code == 4 and package in done.err and "--device cpu" in done.err and not done.out


def test_signed_integers_are_the_same_numbers():
    given = Projection(np_tensor([[[0x80, 0xF7]]]), np_tensor([1]), np_tensor([MIDDLES]), None, 4)
    found = given.signed()
    assert found.qweight.tolist() == [[[0x08, 0x7F]]] and found.qzeros.tolist() == [0]  # 0 8 7 15: -8 0 -1 7
    with pytest.raises(ValueError, match="some"):
        Projection(given.qweight, given.scales, np_tensor([0x87]), None, 4).signed()


def np_tensor(values):
    import torch

    return torch.tensor(values, dtype=torch.uint8)


@pytest.fixture(scope="module")
def symmetric(tiny, tmp_path_factory):
    return nearest_awq(tiny, tmp_path_factory.mktemp("symmetric") / "awq", symmetric=True)


def test_a_model_for_tensorrt_has_the_checkpoints_integers(symmetric, tiny, two_graphs, tmp_path):
    adapters = [f"travel={two_graphs / 'travel'}"]
    usual = optimize(root=tmp_path, base=str(symmetric), device="cpu", activations="fp32", head="float",
                     adapter_weights="float", adapters=adapters).folder
    made = optimize(root=tmp_path, base=str(symmetric), device="tensorrt", adapters=adapters,
                    output=str(tmp_path / "tensorrt")).folder
    onnx.checker.check_model(str(made / "model.onnx"))
    graph = onnx.load(str(made / "model.onnx"), load_external_data=False).graph
    assert {node.op_type for node in graph.node if node.domain} == {"GroupQueryAttention"}  # the only op of genai's
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    made_by = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert {types[node.input[0]] for node in made_by} == {onnx.TensorProto.INT4}
    for adapter in (None, "travel"):
        with Session(usual) as one, Session(made, "cpu") as other:  # fp16 there
            assert divergence(one.logits(IDS, adapter), other.logits(IDS, adapter)) < 1e-3
    with pytest.raises(BadInput, match="without zero points"):
        optimize(root=tmp_path, base=str(two_graphs / "awq"), device="tensorrt", output=str(tmp_path / "zeros"))


@pytest.mark.parametrize("device", ["webgpu", "openvino"])
def test_the_graph_of_a_device_is_sound_and_names_it(two_graphs, tmp_path, device):
    made = optimize(root=tmp_path, base=str(two_graphs / "awq"), device=device,
                    adapters=[f"travel={two_graphs / 'travel'}"]).folder
    graph = onnx.load(str(made / "model.onnx"), load_external_data=False).graph
    assert {node.op_type for node in graph.node if node.domain == "com.microsoft"} == {
        "GroupQueryAttention", "MatMulNBits", "SkipSimplifiedLayerNormalization",
        *(["GatherBlockQuantized"] if device == "openvino" else [])}
    document = json.loads((made / "genai_config.json").read_text())
    (entry,) = document["model"]["decoder"]["session_options"]["provider_options"]
    assert EXECUTION_PROVIDERS[device].lower().startswith(next(iter(entry)).lower())
    if device == "openvino":
        assert entry == {"OpenVINO": {"device_type": "CPU"}}
    for adapter in (None, "travel"):
        with Session(made, "cpu") as session, Session(two_graphs / "onnx-ao") as usual:
            assert divergence(usual.logits(IDS, adapter), session.logits(IDS, adapter)) < 0.05  # int8 there


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    def log_softmax(x):
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(a), log_softmax(b)
    return float((np.exp(p) * (p - q)).sum(-1).mean())
