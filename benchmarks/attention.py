"""Attention of ours on a CPU beside onnxruntime's GroupQueryAttention: one node each, in turns, over the same numbers.

    taskset -c 0 python benchmarks/attention.py --heads 9 --kv-heads 3 --size 64
    taskset -c 0,1 python benchmarks/attention.py --heads 32 --kv-heads 32 --size 96 --threads 2

Keys and values lie in one place for all calls, as in a conversation; each case is so many rows of so many new tokens
behind so many old ones. Shown are milliseconds, the least of all turns: ours in fp32, ours in int8, onnxruntime's.
"""

import argparse
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from phicli.export.token_cache import ATTENTION, BEHIND, DOMAIN
from phicli.inference.attending import OP
from phicli.kernels.build import ops_library

CASES = ((1, 1, 64), (1, 1, 256), (8, 1, 180), (1, 1, 4096), (1, 8, 512), (1, 64, 1000), (1, 128, 0), (1, 512, 0),
         (1, 512, 3584))
KINDS = {"fp32": (OP, DOMAIN, TensorProto.FLOAT, 0),
         "int8": (ATTENTION["cpu"], DOMAIN, TensorProto.INT8, BEHIND["cpu"]),
         "onnxruntime": ("GroupQueryAttention", "com.microsoft", TensorProto.FLOAT, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="channels of a head")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=40, help="of a single token; a tenth of them for 512")
    args = parser.parse_args()
    sessions = {kind: session(kind, args) for kind in KINDS}
    print(f"{'rows, new, before':>20} " + "".join(f"{kind:>13}" for kind in KINDS) + "   onnxruntime / fp32")
    for case in CASES:
        runs = {kind: bound(found, kind, args, *case) for kind, found in sessions.items()}
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(max(3, args.turns // 10) if case[1] >= 512 else args.turns):
            for kind, (found, binding, _) in runs.items():
                begun = time.perf_counter()
                found.run_with_iobinding(binding)
                best[kind] = min(best[kind], time.perf_counter() - begun)
        print(f"{case!s:>20} " + "".join(f"{1000 * best[kind]:13.3f}" for kind in KINDS)
              + f"{best['onnxruntime'] / best['fp32']:10.2f}", flush=True)


def session(kind: str, args: argparse.Namespace) -> onnxruntime.InferenceSession:
    op, domain, number, behind = KINDS[kind]
    inputs = ["q", "", "", "past_k", "past_v", "lengths", "total", "cos", "sin"]
    node = helper.make_node(
        op, inputs, ["y", "k", "v"], domain=domain, num_heads=args.heads, kv_num_heads=args.kv_heads,
        scale=args.size ** -0.5, softcap=0.0, local_window_size=-1, do_rotary=1, rotary_interleaved=0)
    shapes = {"q": ["b", "t", "n"], "past_k": ["b", args.kv_heads, "room", args.size + behind], "lengths": ["b"],
              "total": [], "cos": ["places", args.size // 2]}
    shapes |= {"past_v": shapes["past_k"], "sin": shapes["cos"]}
    types = {"past_k": number, "past_v": number, "lengths": TensorProto.INT32, "total": TensorProto.INT32}
    graph = helper.make_graph(
        [node], "attention", [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shapes[name])
                              for name in inputs if name],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (("y", TensorProto.FLOAT), ("k", number),
                                                                            ("v", number))])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.register_custom_ops_library(str(ops_library("cpu")))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bound(found: onnxruntime.InferenceSession, kind: str, args: argparse.Namespace, rows: int, new: int,
          before: int) -> tuple[onnxruntime.InferenceSession, onnxruntime.IOBinding, list[np.ndarray]]:
    """A session with inputs and outputs at places of their own, which the list keeps."""
    rng, behind, room = np.random.default_rng(0), KINDS[kind][3], before + new
    query = rng.standard_normal((rows, new, (args.heads + 2 * args.kv_heads) * args.size), np.float32)
    shape = rows, args.kv_heads, room, args.size + behind
    past = [rng.integers(-127, 128, shape, np.int8) if behind else rng.standard_normal(shape, np.float32)
            for _ in range(2)]
    for side in past if behind else ():
        side[..., -2:] = np.array([0, 60], np.int8)  # a scale in bfloat16
    tables = [rng.standard_normal((8192, args.size // 2), np.float32) for _ in range(2)]
    out = np.zeros((rows, new, args.heads * args.size), np.float32)
    given = {"q": query, "past_k": past[0], "past_v": past[1], "lengths": np.full(rows, room - 1, np.int32),
             "total": np.array(room, np.int32), "cos": tables[0], "sin": tables[1]}
    binding = found.io_binding()
    for name, value in given.items():
        binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
    for name, value in (("y", out), ("k", past[0]), ("v", past[1])):
        binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
    return found, binding, [*given.values(), out]


if __name__ == "__main__":
    main()
