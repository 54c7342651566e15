"""Projections and their LoRA as one op: it gives what the ops that it replaces give, and replaces those only."""

from collections import Counter

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from phicli.export.fused import DOMAIN
from phicli.export.matrices import in_blocks
from phicli.inference.joined import join
from phicli.kernels.build import matmul_missing, ops_library

K, BLOCK = 96, 32
RANKS = [16, 48, 32]  # of B; A has as many for each segment
NARROW, WIDE = (40, 24, 8), (72, 72)  # outputs of q, k, v and of gate, up
pytestmark = pytest.mark.skipif(bool(matmul_missing()), reason=f"{matmul_missing()}")


def graph_of(int8: bool = False, segments: int = 1, bias: bool = False, as_input: bool = False):
    """x -> q, k, v with LoraUp, and x -> gate, up with LoraGatedUp: a ModelProto with the ops of a folder.

    as_input: the ranks come as an input of the graph, as in `phicli.Engine`.
    """
    rng = np.random.default_rng(0)
    nodes, constants, kind = [], {}, np.float32 if int8 else np.float16

    def matrices(name: str, rows: int, ranks: list[int], lanes: int) -> str:
        parts = [(rng.standard_normal((rank, columns) if lanes == 1 else (columns, rank)) / 9).astype(kind)
                 for rank, columns in ((rank, rows) for rank in ranks)]
        constants[name] = np.concatenate([in_blocks(part, lanes, int8) for part in parts])
        return name

    def product(name: str, outputs: int) -> str:
        weights = rng.integers(0, 256, (outputs, K // BLOCK, BLOCK // 2), np.uint8)
        scales = rng.uniform(0.001, 0.02, (outputs, K // BLOCK)).astype(np.float32)
        zeros = rng.integers(0, 256, (outputs, 2), np.uint8)
        constants.update({f"{name}.w": weights, f"{name}.s": scales, f"{name}.z": zeros})
        more = ["", f"{name}.bias"] if bias else []
        if bias:
            constants[f"{name}.bias"] = rng.standard_normal(outputs).astype(np.float32)
        nodes.append(helper.make_node("MatMulNBits", ["x", *(f"{name}.{part}" for part in "wsz"), *more],
                                      [f"{name}.base"], name, domain="com.microsoft", N=outputs, K=K, bits=4,
                                      block_size=BLOCK, accuracy_level=4))
        return f"{name}.base"

    def lora(op: str, inputs: list[str], output: str, ranks: list[int], row: int, **ends: list[int]) -> None:
        own = {"row": row} if as_input else {}
        nodes.append(helper.make_node(op, ["id", *inputs, *(["ranks"] if as_input else [])], [output],
                                      f"{op} {output}", domain=DOMAIN, ranks=ranks, **own, **ends))

    def ends(outputs: int) -> list[int]:
        return [8 * (outputs // 8 * (n + 1) // segments) for n in range(segments)]

    of_a = [segments * rank for rank in RANKS]
    for group, sizes in (("qkv", NARROW), ("mlp", WIDE)):
        bases = [product(f"{group}{n}", outputs) for n, outputs in enumerate(sizes)]
        bs = [matrices(f"{group}{n}.b", outputs, RANKS, 8) for n, outputs in enumerate(sizes)]
        lora("LoraDown", ["x", matrices(f"{group}.a", K, of_a, 1)], f"{group}.h", of_a, 0)
        if group == "mlp":
            inputs = [name for pair in zip(bases, bs, strict=True) for name in pair]
            lora("LoraGatedUp", [f"{group}.h", *inputs], "mlp", RANKS, 1, ends=ends(72), ends2=ends(72))
            continue
        for n, (base, b) in enumerate(zip(bases, bs, strict=True)):
            lora("LoraUp", [f"{group}.h", base, b], f"y{n}", RANKS, 1, ends=ends(sizes[n]))
    given = [helper.make_tensor_value_info("id", TensorProto.INT64, ["n"]),
             helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", K])]
    if as_input:
        given.append(helper.make_tensor_value_info("ranks", TensorProto.INT64, [2, len(RANKS)]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y0", "y1", "y2", "mlp")]
    graph = helper.make_graph(nodes, "layer", given, outputs,
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session_of(model, threads: int = 3):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(ops_library("cpu", matmul=True)))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("int8", "segments", "as_input"), [(False, 1, False), (True, 3, False), (False, 2, True)])
def test_one_op_gives_what_the_others_give_to_the_last_bit(int8, segments, as_input):
    model = graph_of(int8, segments, as_input=as_input)
    apart = session_of(model)
    join(model)
    assert Counter(node.op_type for node in model.graph.node) == {"LoraMatMulNBits": 1, "LoraGatedMatMulNBits": 1}
    joined = session_of(model)
    rng = np.random.default_rng(1)
    of_a = [segments * rank for rank in RANKS]
    more = {"ranks": np.array([of_a, RANKS], np.int64)} if as_input else {}
    for batch, tokens in ((1, 1), (1, 3), (1, 70), (3, 1), (9, 1), (3, 20), (2, 0)):
        x = rng.standard_normal((batch, tokens, K)).astype(np.float32)
        for ids in ([0], [2], [*rng.integers(0, 4, batch)]):
            feeds = {"id": np.array(ids, np.int64), "x": x, **more}
            for one, other in zip(joined.run(None, feeds), apart.run(None, feeds), strict=True):
                assert one.shape == other.shape and (one == other).all(), (batch, tokens, ids)


def test_threads_that_wait_for_one_another_end():
    """Many small runs, by more threads than there are cores: none waits for a part that nobody has begun."""
    model = graph_of()
    join(model)
    joined, alone = session_of(model, 8), session_of(model, 1)
    x = np.random.default_rng(2).standard_normal((1, 1, K)).astype(np.float32)
    wanted = alone.run(None, {"id": np.array([1]), "x": x})
    for _ in range(500):
        for found, right in zip(joined.run(None, {"id": np.array([1]), "x": x}), wanted, strict=True):
            assert (found == right).all()


def test_what_is_read_elsewhere_too_stays():
    model = graph_of()
    model.graph.output.append(helper.make_tensor_value_info("qkv1.base", TensorProto.FLOAT, None))
    join(model)
    assert Counter(node.op_type for node in model.graph.node) == {
        "MatMulNBits": 3, "LoraDown": 1, "LoraUp": 3, "LoraGatedMatMulNBits": 1}


def test_a_product_with_a_bias_and_products_of_other_inputs_stay():
    biased, other = graph_of(bias=True), graph_of()
    other.graph.node[1].input[0] = "z"
    for model, gone in ((biased, 0), (other, 1)):
        before = len(model.graph.node)
        join(model)
        assert before - len(model.graph.node) == 3 * gone
    session_of(biased)


@pytest.mark.parametrize(("attribute", "value", "message"), [
    ("N", [40, 24, 16], "another size"),  ("N", [40] * 4, "one to three"), ("ranks", [16, 24, 32], "multiples of 16"),
    ("ends", [8, 16, 24, 40], "one to three ends"), ("K", 64, "another size|not K"), ("block_size", 48, "no product")])
def test_attributes_that_lie(attribute, value, message):
    model = graph_of()
    join(model)
    node = next(node for node in model.graph.node if node.op_type == "LoraMatMulNBits")
    kept = [a for a in node.attribute if a.name != attribute]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(attribute, value)])
    with pytest.raises(Exception, match=message):
        session_of(model).run(None, {"id": np.array([1]), "x": np.zeros((1, 1, K), np.float32)})
