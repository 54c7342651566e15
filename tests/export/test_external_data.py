"""Tensors leave memory while a model is built, and are written once."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_checkpoints import nearest_awq

from phicli import optimize
from phicli.errors import Missing
from phicli.export.external_data import streamed_saving
from phicli.workflow.patching import replaced

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(5, dtype=np.uint8),
           "c": np.full((3, 1), 2.5, np.float16)}


def model_of(tensors: dict[str, np.ndarray]) -> ir.Model:
    values = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in tensors.items()]
    return ir.Model(ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 21}), ir_version=10)


def in_memory(model: ir.Model) -> list[str]:
    return [n for n, v in model.graph.initializers.items() if not isinstance(v.const_value, ir.ExternalTensor)]


def test_what_was_taken_is_read_back(tmp_path):
    model, path = model_of(TENSORS), tmp_path / "model.onnx"
    with streamed_saving(tmp_path) as data:
        data.take(model.graph, keep=lambda value: value.name == "c")
        assert in_memory(model) == ["c"]
        data.take(model.graph)
        assert in_memory(model) == []
        model.graph.initializers.add(ir.Value(name="late", const_value=ir.tensor(TENSORS["b"] + 7, name="late")))
        ir.save(model, str(path), external_data="model.onnx.data", size_threshold_bytes=0)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    assert sorted(found) == ["a", "b", "c", "late"]
    for name, array in {**TENSORS, "late": TENSORS["b"] + 7}.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_large_constant_of_a_node_goes_to_the_file_too(tmp_path):
    """As LongRoPE's tables do, which stand in the branches of an If."""
    path, table = tmp_path / "model.onnx", np.arange(1 << 16, dtype=np.float32)
    with streamed_saving(tmp_path) as data:
        model = model_of(TENSORS)
        out = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(table.shape))
        model.graph.append(ir.node("Constant", [], {"value": ir.tensor(table, name="table")}, outputs=[out]))
        model.graph.outputs.append(out)
        data.take(model.graph)
        ir.save(model, str(path), external_data="model.onnx.data")
    assert path.stat().st_size < 2000
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {})[0], table)


def test_where_nothing_was_taken_the_library_saves(tmp_path):
    with streamed_saving(tmp_path):
        ir.save(model_of(TENSORS), str(tmp_path / "model.onnx"), external_data="data", size_threshold_bytes=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "model.onnx"]
    assert len(onnx.load(str(tmp_path / "model.onnx")).graph.initializer) == 3


def test_a_failure_leaves_nothing(tmp_path):
    before = ir.save
    with pytest.raises(KeyError), streamed_saving(tmp_path) as data:
        data.take(model_of(TENSORS).graph)
        raise KeyError
    assert list(tmp_path.iterdir()) == [] and ir.save is before


def test_a_library_that_lost_what_is_replaced():
    with pytest.raises(Missing, match="no such_function"), replaced(ir, "such_function", print):
        pass


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_build_writes_each_byte_once(tmp_path, tiny, device):
    """Between the tensors of the data file there is nothing, and they do not share anything."""
    folder, _ = optimize(root=tmp_path, base=str(nearest_awq(tiny, tmp_path / "awq")), device=device,
                         activations="int8", head="int8", cuda_graph=False)
    end = 0
    tensors = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.initializer
    entries = [{e.key: e.value for e in t.external_data} for t in tensors if t.external_data]
    for entry in sorted(entries, key=lambda e: int(e["offset"])):
        assert entry["location"] == "model.onnx.data" and int(entry["offset"]) == end
        end += int(entry["length"])
    assert end == (folder / "model.onnx.data").stat().st_size > 2_000_000
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]
