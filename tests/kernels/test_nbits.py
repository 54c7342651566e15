"""MatMulNBits of our own: what it computes, for which graphs it is taken, and where it is not to be had."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_checkpoints import nearest_awq

from phicli import optimize
from phicli.inference.ops import BLOCKS, matmul_fits
from phicli.inference.session import Session
from phicli.kernels import build
from phicli.kernels.build import matmul_missing, ops_library
from phicli.quantization import CALIBRATION

needs_matmul = pytest.mark.skipif(bool(matmul_missing()), reason=f"{matmul_missing()}")
KINDS = [(bits, block) for bits, blocks in BLOCKS.items() for block in blocks]


class Product:
    """A graph of one MatMulNBits with random weights; run by our library or onnxruntime's own code."""

    def __init__(self, bits: int, block: int, *, blocks: int, outputs: int, zeros: bool = True, bias: bool = False,
                 accuracy: int = 4, dtype: type = np.float32):
        rng = np.random.default_rng(bits * block + blocks)
        self.bits, self.block, self.inputs, self.outputs = bits, block, block * blocks, outputs
        packed = rng.integers(0, 256, (outputs, blocks, block * bits // 8), np.uint8)
        points = rng.integers(0, 256, (outputs, -(-blocks * bits // 8)), np.uint8)
        self.scales = rng.uniform(0.001, 0.02, (outputs, blocks)).astype(np.float32)
        self.bias = rng.standard_normal(outputs).astype(np.float32) if bias else np.zeros(outputs, np.float32)
        integers = self.spread(packed.reshape(outputs, -1))
        middle = np.full((outputs, blocks), 1 << (bits - 1))
        self.zeros = self.spread(points)[:, :blocks] if zeros else middle
        self.centred = integers.reshape(outputs, blocks, block) - self.zeros[..., None]
        constants = {"w": packed, "s": self.scales.astype(dtype)} | ({"z": points.ravel()} if zeros else {})
        inputs = ["x", "w", "s", "z" if zeros else ""]
        if bias:
            constants["b"] = self.bias
            inputs += ["", "b"]
        node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", N=outputs, K=self.inputs,
                                bits=bits, block_size=block, accuracy_level=accuracy)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph = helper.make_graph(
            [node], "one", [helper.make_tensor_value_info("x", kind, [*"abc", self.inputs])],
            [helper.make_tensor_value_info("y", kind, [*"abc", outputs])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()])
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        self.model = helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def spread(self, packed: np.ndarray) -> np.ndarray:
        if self.bits == 8:
            return packed.astype(np.int64)
        return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1).astype(np.int64)

    def run(self, x: np.ndarray, ours: bool = True) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        if ours:
            options.register_custom_ops_library(str(ops_library("cpu", matmul=True)))
        session = onnxruntime.InferenceSession(self.model.SerializeToString(), options,
                                               providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})[0]

    def expected(self, x: np.ndarray) -> np.ndarray:
        """In float64, of activations rounded to int8 by the largest of each block."""
        parts = x.reshape(*x.shape[:-1], -1, self.block)
        top = np.abs(parts).max(-1, keepdims=True)
        inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
        rounded = np.rint(parts * inverse) * (top / np.float32(127)).astype(np.float64)
        weights = self.centred * self.scales[..., None].astype(np.float64)
        return np.einsum("...bk,nbk->...n", rounded, weights) + self.bias


@needs_matmul
@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize(("bits", "block"), KINDS)
def test_products_are_those_of_rounded_activations(bits, block, zeros):
    rng = np.random.default_rng(0)
    for blocks, outputs in ((1, 1), (3, 7), (9, 33), (16, 2100)):
        product = Product(bits, block, blocks=blocks, outputs=outputs, zeros=zeros)
        for rows in (1, 2, 4, 5, 8, 19):
            x = rng.standard_normal((1, 1, rows, product.inputs)).astype(np.float32)
            expected = product.expected(x)
            assert np.abs(product.run(x) - expected).max() < 1e-5 * np.abs(expected).max()


@needs_matmul
@pytest.mark.parametrize(("bits", "block"), [kind for kind in KINDS if kind != (8, 16)])
def test_products_are_onnxruntimes_own(bits, block):
    product = Product(bits, block, blocks=9, outputs=65, bias=True)
    x = np.random.default_rng(1).standard_normal((2, 1, 3, product.inputs)).astype(np.float32)
    x[0, 0, 0] = 0
    x[0, 0, 1, :block] = 0
    x[1, 0, 0] *= 1e4
    ours, own = product.run(x), product.run(x, ours=False)
    assert ours.shape == own.shape == (2, 1, 3, 65)
    np.testing.assert_allclose(ours[0, 0, 0], product.bias)
    assert (np.abs(ours - own).max(-1) <= 1e-5 * np.abs(own).max(-1)).all()


@needs_matmul
def test_no_rows_give_no_rows():
    product = Product(4, 128, blocks=2, outputs=5)
    assert product.run(np.zeros((1, 0, 3, 256), np.float32)).shape == (1, 0, 3, 5)


@needs_matmul
def test_a_wrong_number_of_inputs_is_refused():
    product = Product(4, 128, blocks=2, outputs=5)
    del product.model.graph.input[0].type.tensor_type.shape.dim[:]
    with pytest.raises(Exception, match="the last dimension is not K"):
        product.run(np.zeros((2, 255), np.float32))


def test_graphs_that_ours_is_not_for():
    assert matmul_fits(Product(4, 128, blocks=2, outputs=5).model.graph)
    assert matmul_fits(Product(8, 32, blocks=2, outputs=5, bias=True).model.graph)
    assert not matmul_fits(onnx.GraphProto())
    for other in (Product(4, 128, blocks=2, outputs=5, accuracy=1), Product(4, 256, blocks=2, outputs=5),
                  Product(4, 128, blocks=2, outputs=5, dtype=np.float16)):
        assert not matmul_fits(other.model.graph)
    ordered = Product(4, 128, blocks=2, outputs=5).model.graph
    ordered.node[0].input.append("order of inputs")
    assert not matmul_fits(ordered)
    floats = Product(4, 128, blocks=2, outputs=5).model.graph
    floats.initializer[-1].data_type = TensorProto.FLOAT  # zero points in float
    assert not matmul_fits(floats)


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("products")
    base = str(nearest_awq(tiny, root / "awq"))
    return {activations: optimize(root=root, base=base, device="cpu", activations=activations,
                                  head="int8", output=root / activations)[0] for activations in ("int8", "fp32")}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@needs_matmul
def test_a_model_is_as_near_to_fp32_as_with_onnxruntimes(built):
    """Not the same logits: where activations are rounded, a difference in the last bit grows from layer to layer."""
    sessions = {kernels: Session(built["int8"], kernels=kernels) for kernels in ("phicli", "onnxruntime")}
    ids = sessions["phicli"].codec.encode_text(CALIBRATION.read_text()[:6000])[:900]
    exact = log_softmax(Session(built["fp32"]).logits(ids))
    found = {kernels: log_softmax(session.logits(ids)) for kernels, session in sessions.items()}
    kl = {kernels: (np.exp(exact) * (exact - values)).sum(-1).mean() for kernels, values in found.items()}
    assert not np.array_equal(*found.values())  # or ours was not taken
    assert kl["phicli"] < 1.1 * kl["onnxruntime"]
    assert (exact.argmax(-1) == found["phicli"].argmax(-1)).mean() > 0.95


@needs_matmul
def test_auto_takes_the_faster_products(built, monkeypatch):
    def logits(kernels: str) -> np.ndarray:
        return Session(built["int8"], kernels=kernels).logits([3, 5, 7])

    for flags, taken in ((("avx2", "fma"), "phicli"), (("sse2",), "onnxruntime"), (("asimddp",), "onnxruntime")):
        monkeypatch.setattr(build, "_cpu_flags", lambda flags=flags: frozenset(flags))
        np.testing.assert_array_equal(logits("auto"), logits(taken))


def test_activations_in_fp32_stay_onnxruntimes(built):
    sessions = [Session(built["fp32"], kernels=kernels) for kernels in ("phicli", "onnxruntime")]
    first, second = (session.logits([3, 5, 7]) for session in sessions)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("lack", ["no compiler", "a compiler that fails"])
def test_without_the_library_onnxruntimes_products_are_taken(built, monkeypatch, tmp_path, lack):
    expected = Session(built["int8"], kernels="onnxruntime").logits([3, 5, 7])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", shutil.which("false"))
    if lack == "no compiler":
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC")
    np.testing.assert_array_equal(Session(built["int8"], kernels="phicli").logits([3, 5, 7]), expected)
    assert not list(tmp_path.rglob("*.so"))
