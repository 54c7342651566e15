"""Products of 4- and 8-bit weights on a GPU: ours for many rows beside onnxruntime's MatMulNBits and memory's speed.

    python benchmarks/int4_gemm.py                                  # H100: sums, then speed
    python benchmarks/int4_gemm.py --tune 90 --rows 8,32,64         # the best number of parts too, for 90 s
    python benchmarks/serve.py --device cuda --rows 1,8,32 --clients 0 --kernels phicli        # whole models

First the sums: sizes of all kinds, against float64, and onnxruntime's beside. Then for each product of a model a
session that does it again and again as one CUDA graph, with so many different weights that none stay in the L2 cache;
both ops take turns. Microseconds of a product, the best of the rounds; what its memory would take at the speed of a
large sum of torch's, measured before; their ratio. At the end what a step spends in products, by model.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from phicli.inference.products import DOMAIN, OP
from phicli.kernels.build import ops_library

DEVICE, L2, PLAIN = "cuda", 50_000_000, -1  # a run that is no CUDA graph
SUMS_SIZES = ((8, 1), (72, 3), (968, 9), (3072, 32))  # outputs, blocks of inputs
SUMS_ROWS = (1, 2, 3, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 200)
NOMINAL = 3.35e12  # bytes a second of an H100's memory, where there is no torch to measure it


@dataclass(frozen=True)
class Shape:
    name: str
    outputs: int
    inputs: int
    bits: int = 4
    block: int = 128
    zeros: bool = True

    @property
    def weight_bytes(self) -> int:
        groups = self.inputs // self.block
        return self.outputs * (self.inputs * self.bits // 8 + 2 * groups + self.zeros * -(-groups * self.bits // 8))

    def bytes_of(self, rows: int) -> int:
        return self.weight_bytes + 2 * rows * (self.inputs + self.outputs)


SHAPES = {shape.name: shape for shape in (
    Shape("qkv", 9216, 3072), Shape("qkv of phi-4", 5120, 3072), Shape("o", 3072, 3072), Shape("gate", 8192, 3072),
    Shape("gate and up", 16384, 3072), Shape("down", 3072, 8192),
    Shape("head", 32064, 3072, 8, 32, False), Shape("head of phi-4", 200064, 3072, 8, 32, False))}
MODELS = {"phi-3.5-mini": {"qkv": 32, "o": 32, "gate": 64, "down": 32, "head": 1},
          "phi-4-mini": {"qkv of phi-4": 32, "o": 32, "gate": 64, "down": 32, "head of phi-4": 1}}


class Products:
    """A session that multiplies x with `copies` random matrices `nodes` times; its outputs are `y0`, `y1`, …"""

    def __init__(self, shape: Shape, values: dict[str, np.ndarray], copies: int, nodes: int, ours: bool,
                 parts: int = 0):
        own = {"parts": parts} if ours else {}
        kinds = ("w", "s", "z")[: 2 + shape.zeros]
        made = [helper.make_node(
            OP if ours else "MatMulNBits", ["x", *(f"{kind}{i % copies}" for kind in kinds)],
            [f"y{i}", *([f"sums{i}", f"wide{i}"] if ours else [])], domain=DOMAIN if ours else "com.microsoft",
            N=shape.outputs, K=shape.inputs, bits=shape.bits, block_size=shape.block, **own) for i in range(nodes)]
        graph = helper.make_graph(
            made, "products", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["rows", shape.inputs])],
            [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT16, ["rows", shape.outputs])
             for i in range(nodes)],
            [numpy_helper.from_array(value, name) for name, value in values.items()])
        opsets = [helper.make_opsetid(*opset) for opset in (("", 21), ("com.microsoft", 1), (DOMAIN, 1))]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # so equal nodes stay
        if ours:
            options.register_custom_ops_library(str(ops_library("cuda", matmul=True)))
        providers: Any = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=(
            providers if DEVICE == "cuda" else ["CPUExecutionProvider"]))
        self.shape, self.nodes = shape, nodes

    def bind(self, x: np.ndarray, graph: int) -> tuple[Any, Any, Any]:
        """Inputs and outputs at places that stay; what `seconds` asks for, and the first output."""
        binding, options = self.session.io_binding(), onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x, DEVICE, 0))
        held = [onnxruntime.OrtValue.ortvalue_from_shape_and_type([len(x), self.shape.outputs], np.float16, DEVICE, 0)
                for _ in range(self.nodes)]
        for i, value in enumerate(held):
            binding.bind_ortvalue_output(f"y{i}", value)
        return binding, options, held

    def seconds(self, bound: tuple[Any, Any, Any], runs: int) -> float:
        """Of one product, on average."""
        begun = time.perf_counter()
        for _ in range(runs):
            self.session.run_with_iobinding(bound[0], bound[1])
        return (time.perf_counter() - begun) / runs / self.nodes


def random_values(shape: Shape, copies: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    groups, values = shape.inputs // shape.block, {}
    for i in range(copies):
        values[f"w{i}"] = np.frombuffer(rng.bytes(shape.outputs * shape.inputs * shape.bits // 8), np.uint8).reshape(
            shape.outputs, groups, -1)
        values[f"s{i}"] = rng.uniform(0.001, 0.01, (shape.outputs, groups)).astype(np.float16)
        if shape.zeros:
            values[f"z{i}"] = np.frombuffer(rng.bytes(shape.outputs * -(-groups * shape.bits // 8)), np.uint8)
    return values


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    return packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)


class Reference:
    """What products with the first matrix should be, in its first outputs and the last."""

    def __init__(self, shape: Shape, values: dict[str, np.ndarray]):
        self.outputs = np.unique([*range(min(1024, shape.outputs)), *range(max(0, shape.outputs - 512), shape.outputs)])
        groups, count = shape.inputs // shape.block, len(self.outputs)
        integers = unpacked(values["w0"][self.outputs].reshape(count, -1), shape.bits).astype(np.float32)
        middle: Any = float(1 << (shape.bits - 1))
        if shape.zeros:
            points = values["z0"].reshape(shape.outputs, -1)[self.outputs]
            middle = unpacked(points, shape.bits)[:, :groups, None].astype(np.float32)
        weights = (integers.reshape(count, groups, -1) - middle) * values["s0"][self.outputs, :, None]
        self.weights = weights.astype(np.float16).reshape(count, -1).astype(np.float64)  # both ops round them so

    def difference(self, x: np.ndarray, y: np.ndarray) -> float:
        """The largest, of an output and the usual size of all."""
        wanted = x.astype(np.float64) @ self.weights.T
        off = float((np.abs(y[:, self.outputs] - wanted) / (np.abs(wanted) + wanted.std())).max())
        return off if np.isfinite(y).all() else math.inf


def check(rng: np.random.Generator) -> dict[str, float]:
    """Largest differences of all kinds of products."""
    found = {"ours": 0.0, "onnxruntime": 0.0}
    for bits in (4, 8):
        for block in (32, 64, 128):
            for number, (outputs, blocks) in enumerate(SUMS_SIZES):
                inputs = blocks * block
                shape = Shape("", outputs, inputs, bits, block, zeros=(number + block // 32) % 2 == 0)
                values = random_values(shape, 1, rng)
                reference = Reference(shape, values)
                parts = {f"ours, {parts} parts": Products(shape, values, 1, 1, True, parts) for parts in (0, 1, 3, 5)}
                sessions = {"onnxruntime": Products(shape, values, 1, 1, False)} | parts
                for rows in SUMS_ROWS:
                    x = rng.standard_normal((rows, inputs)).astype(np.float16)
                    for name, products in sessions.items():
                        bound = products.bind(x, PLAIN)
                        products.seconds(bound, 1)
                        off, who = reference.difference(x, bound[2][0].numpy()), name.split(",")[0]
                        if who == "ours" and off > 4e-3:
                            print(f"WRONG: {name}, {rows} rows, {shape}: {off}", flush=True)
                        found[who] = max(found[who], off)
    print(f"sums: largest differences {found}", flush=True)
    return found


def memory_speed() -> float:
    """Bytes a second that a large sum reads; what an H100 is sold for, without torch on a GPU."""
    import torch

    if not torch.cuda.is_available():
        return NOMINAL
    numbers = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    best = math.inf
    for _ in range(10):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        numbers.sum()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return numbers.nbytes / best


class Bench:
    def __init__(self, args: argparse.Namespace):
        self.rng, self.rows, self.rounds, self.speed = np.random.default_rng(0), args.rows, args.rounds, memory_speed()
        self.tune_until = time.monotonic() + args.tune
        print(f"memory: {self.speed / 1e12:.2f} TB/s", flush=True)

    def measure(self, shape: Shape, tune: bool) -> list[dict[str, Any]]:
        copies = max(1, math.ceil(3 * L2 / shape.weight_bytes))
        nodes = copies * math.ceil(1e-3 * self.speed / shape.weight_bytes / copies)
        values = random_values(shape, copies, self.rng)
        sessions = {"ours": Products(shape, values, copies, nodes, True),
                    "onnxruntime": Products(shape, values, copies, nodes, False)}
        reference = Reference(shape, values)
        lines = [self.line(reference, sessions, rows, graph) for graph, rows in enumerate(self.rows, 1)]
        sessions.clear()
        if tune:
            for line in self.tuned(shape, values, copies, nodes):
                print(line, flush=True)
        return lines

    def line(self, reference: Reference, sessions: dict[str, Products], rows: int, graph: int) -> dict[str, Any]:
        shape = sessions["ours"].shape
        x = self.rng.standard_normal((rows, shape.inputs)).astype(np.float16)
        bound = {name: products.bind(x, graph) for name, products in sessions.items()}
        seconds = self.best(sessions, bound)
        off = reference.difference(x, bound["ours"][2][0].numpy())
        roof = shape.bytes_of(rows) / self.speed
        print(f"{shape.name:14} {rows:4} rows: ours {seconds['ours'] * 1e6:8.2f} us, {roof / seconds['ours']:.2f} of "
              f"memory's speed; onnxruntime {seconds['onnxruntime'] * 1e6:8.2f} us, "
              f"{seconds['onnxruntime'] / seconds['ours']:5.2f} times; differs {off:.1e}", flush=True)
        return {"shape": shape.name, "rows": rows, "roof": roof, "differs": off, **seconds}

    def best(self, sessions: dict[str, Products], bound: dict[str, Any]) -> dict[str, float]:
        for name, products in sessions.items():
            products.seconds(bound[name], 4)  # loads, captures
        rounds = [{name: products.seconds(bound[name], 5) for name, products in sessions.items()}
                  for _ in range(self.rounds)]
        return {name: min(of[name] for of in rounds) for name in sessions}

    def tuned(self, shape: Shape, values: dict[str, np.ndarray], copies: int, nodes: int) -> list[str]:
        """The three best numbers of parts, for each number of rows."""
        found: dict[int, list[tuple[float, int]]] = {rows: [] for rows in self.rows}
        for parts in (1, 2, 3, 4, 6, 8, 11, 16):
            if time.monotonic() > self.tune_until or parts > shape.inputs // 128:
                continue
            products = Products(shape, values, copies, nodes, True, parts)
            for graph, rows in enumerate(self.rows, 1):
                bound = products.bind(self.rng.standard_normal((rows, shape.inputs)).astype(np.float16), graph)
                found[rows].append((self.best({"": products}, {"": bound})[""], parts))
        return [f"    parts, {rows} rows: " + "; ".join(
            f"{parts}: {seconds * 1e6:.2f} us" for seconds, parts in sorted(of)[:3])
            for rows, of in found.items() if of]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: [int(rows) for rows in text.split(",")],
                        default=[1, 2, 4, 8, 16, 32, 64, 256])
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tune", type=float, default=0, metavar="SECONDS", help="for all shapes, from the start")
    parser.add_argument("--skip-sums", action="store_true")
    parser.add_argument("--json", action="store_true", help="everything as one document at the end")
    args = parser.parse_args()
    if DEVICE == "cuda":
        onnxruntime.preload_dlls()
    begun = time.perf_counter()
    library = ops_library("cuda", matmul=True)
    print(f"library: {time.perf_counter() - begun:.1f} s, {library}", flush=True)
    sums = {} if args.skip_sums else check(np.random.default_rng(1))
    bench = Bench(args)
    lines = [line for name in args.shapes.split(",") for line in bench.measure(SHAPES[name], args.tune > 0)]
    for model, counts in MODELS.items():
        for rows in args.rows:
            own = {line["shape"]: line for line in lines if line["rows"] == rows and line["shape"] in counts}
            if len(own) == len(counts):
                total = {who: 1e3 * sum(count * own[name][who] for name, count in counts.items())
                         for who in ("ours", "onnxruntime", "roof")}
                print(f"{model}, {rows} rows, ms of a step's products: ours {total['ours']:.2f}, onnxruntime "
                      f"{total['onnxruntime']:.2f}, memory's speed {total['roof']:.2f}", flush=True)
    if args.json:
        print(json.dumps({"sums": sums, "memory": bench.speed, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
