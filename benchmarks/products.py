"""One product with quantized weights on one thread: ours beside onnxruntime's and beside another build of ours.

    taskset -c 0 python benchmarks/products.py
    taskset -c 0 python benchmarks/products.py --rows 1,8 --library ~/.cache/phicli/ops-…/libops-….so

A shape is bits x block x inputs x outputs. The contenders take turns in one process; microseconds of the processor a
run, least and median.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from phicli.kernels.build import ops_library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4x64x576x1536,4x64x1536x576,8x32x576x8192,4x128x3072x2048")
    parser.add_argument("--rows", default="1,2,4,8,16,32,64,512")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--library", type=Path, help="another build of the library, beside the one of this machine")
    args = parser.parse_args()
    libraries = {"onnxruntime": None, "phicli": ops_library("cpu", matmul=True)}
    if args.library:
        libraries["other"] = args.library
    for shape in args.shapes.split(","):
        bits, block, inputs, outputs = map(int, shape.split("x"))
        model = graph(bits, block, inputs, outputs)
        sessions = {name: opened(model, library) for name, library in libraries.items()}
        for rows in map(int, args.rows.split(",")):
            found = measure(sessions, rows, inputs, args.rounds)
            print(f"{shape:16} {rows:4} rows: " + "   ".join(
                f"{name} {min(times):8.1f} (median {statistics.median(times):8.1f})" for name, times in found.items()),
                flush=True)


def graph(bits: int, block: int, inputs: int, outputs: int) -> bytes:
    rng = np.random.default_rng(0)
    blocks = inputs // block
    constants = {"w": rng.integers(0, 256, (outputs, blocks, block * bits // 8), np.uint8),
                 "s": rng.uniform(0.001, 0.02, (outputs, blocks)).astype(np.float32),
                 "z": rng.integers(0, 256, (outputs, -(-blocks * bits // 8)), np.uint8)}
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], domain="com.microsoft", N=outputs, K=inputs,
                            bits=bits, block_size=block, accuracy_level=4)
    made = helper.make_graph([node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
                             [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
                             [numpy_helper.from_array(value, name) for name, value in constants.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def opened(model: bytes, library: Path | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if library:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(sessions: dict[str, onnxruntime.InferenceSession], rows: int, inputs: int,
            rounds: int) -> dict[str, list[float]]:
    x = np.random.default_rng(1).standard_normal((rows, inputs)).astype(np.float32)
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name, session in sessions.items():
            begun = time.process_time()
            session.run(None, {"x": x})
            if turn:
                found[name].append((time.process_time() - begun) * 1e6)
    return found


if __name__ == "__main__":
    main()
