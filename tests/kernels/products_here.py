"""MatMulNBitsRows on a CPU, its kernels emulated, as a process of its own: what it gives against MatMulNBits.

    python products_here.py LIBRARY DRIVER
"""

import ctypes
import json
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from phicli.inference.products import take_rows

PRODUCTS = 12


def product(rng: np.random.Generator, inputs: int, outputs: int, bits: int, block: int, zeros: bool):
    """A graph of two MatMulNBits, one on the other's output."""
    def constants(number: int, outputs: int, inputs: int) -> dict[str, np.ndarray]:
        groups = inputs // block
        made = {f"w{number}": rng.integers(0, 256, (outputs, groups, block * bits // 8), np.uint8),
                f"s{number}": rng.uniform(0.001, 0.01, (outputs, groups)).astype(np.float16)}
        if zeros:
            made[f"z{number}"] = rng.integers(0, 256, outputs * -(-groups * bits // 8), np.uint8)
        return made

    def node(number: int, source: str, outputs: int, inputs: int):
        return helper.make_node(
            "MatMulNBits", [source, f"w{number}", f"s{number}", *([f"z{number}"] if zeros else [])], [f"y{number}"],
            domain="com.microsoft", N=outputs, K=inputs, bits=bits, block_size=block, accuracy_level=1)

    values = constants(1, outputs, inputs) | constants(2, inputs, outputs)
    graph = helper.make_graph(
        [node(1, "x", outputs, inputs), node(2, "y1", inputs, outputs)], "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", "tokens", inputs])],
        [helper.make_tensor_value_info("y2", TensorProto.FLOAT16, ["batch", "tokens", inputs])],
        [numpy_helper.from_array(value, name) for name, value in values.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model, library: str | None, x: np.ndarray, provider: str = "CPUExecutionProvider") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    return session.run(None, {"x": x})[0].astype(np.float64)


def difference(rng: np.random.Generator, number: int, library: str, provider: str) -> float:
    """The largest between both ops, of an output and the usual size of all."""
    bits, block, zeros = (4, 8)[number % 2], (32, 64, 128)[number % 3], number % 4 < 2
    inputs, outputs = (block * int(rng.integers(1, most // block + 1)) for most in (512, 256))
    shape = int(rng.integers(1, 4)), (1, 5, 12, 40)[number % 4], inputs
    model, x = product(rng, inputs, outputs, bits, block, zeros), rng.standard_normal(shape).astype(np.float16)
    wanted = run(model, None, x)
    assert take_rows(model) == 2
    return float((np.abs(run(model, library, x, provider) - wanted) / (np.abs(wanted) + wanted.std())).max())


def main() -> None:
    library, driver = sys.argv[1:]
    ctypes.CDLL(driver)  # found by its name from then on
    rng = np.random.default_rng(0)
    print(json.dumps([difference(rng, number, library, "CPUExecutionProvider") for number in range(PRODUCTS)]))


if __name__ == "__main__":
    main()
