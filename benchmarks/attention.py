"""Attention of ours beside onnxruntime's GroupQueryAttention: in turns, over the same numbers.

    taskset -c 0 python benchmarks/attention.py --heads 9 --kv-heads 3 --size 64
    taskset -c 0,1 python benchmarks/attention.py --heads 32 --kv-heads 32 --size 96 --threads 2
    python benchmarks/attention.py --heads 32 --kv-heads 32 --size 96 --device cuda

Keys and values lie in one place for all calls, as in a conversation; each case is so many rows of so many new tokens
behind so many old ones. Shown are milliseconds of a node, the least of all turns: ours over floats (on a CPU) and over
int8, onnxruntime's over floats. On CUDA a run has several nodes, each with a cache of its own, and is a CUDA graph.
"""

import argparse
import time
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from phicli.export.token_cache import ATTENTION, BEHIND, DOMAIN
from phicli.inference.attending import OP
from phicli.kernels.build import ops_library

CASES = ((1, 1, 64), (1, 1, 256), (8, 1, 180), (1, 1, 4096), (1, 8, 512), (1, 64, 1000), (1, 128, 0), (1, 512, 0),
         (1, 512, 3584))
ON_CUDA = ((1, 1, 64), (1, 1, 256), (1, 1, 4096), (8, 1, 180), (32, 1, 180), (32, 1, 300), (1, 8, 512), (1, 128, 0),
           (1, 512, 0), (1, 512, 3584), (1, 4096, 0))
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
KINDS = {"cpu": ("floats", "int8", "onnxruntime"), "cuda": ("int8", "onnxruntime")}
NODES = {"cpu": 1, "cuda": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="channels of a head")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--turns", type=int, default=40, help="of a single token; a tenth of them for 512")
    args = parser.parse_args()
    kinds = KINDS[args.device]
    print(f"{'rows, new, before':>20} " + "".join(f"{kind:>13}" for kind in kinds) + f"   onnxruntime / {kinds[0]}")
    for case in ON_CUDA if args.device == "cuda" else CASES:
        runs = {kind: bound(session(kind, args), kind, args, *case) for kind in kinds}
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(max(3, args.turns // 10) if case[1] >= 512 else args.turns):
            for kind, (found, binding, _) in runs.items():
                begun = time.perf_counter()
                found.run_with_iobinding(binding)
                best[kind] = min(best[kind], (time.perf_counter() - begun) / NODES[args.device])
        print(f"{case!s:>20} " + "".join(f"{1000 * best[kind]:13.4f}" for kind in kinds)
              + f"{best['onnxruntime'] / best[kinds[0]]:10.2f}", flush=True)


def session(kind: str, args: argparse.Namespace) -> onnxruntime.InferenceSession:
    own, number = kind != "onnxruntime", TensorProto.FLOAT16 if args.device == "cuda" else TensorProto.FLOAT
    op = {"int8": ATTENTION[args.device], "floats": OP, "onnxruntime": "GroupQueryAttention"}[kind]
    cached = TensorProto.INT8 if kind == "int8" else number
    line = args.size + (BEHIND[args.device] if kind == "int8" else 0)
    shared = {"q": (number, ["b", "t", "n"]), "lengths": (TensorProto.INT32, ["b"]), "total": (TensorProto.INT32, []),
              "cos": (number, ["places", args.size // 2]), "sin": (number, ["places", args.size // 2])}
    nodes, inputs, outputs = [], [(name, *said) for name, said in shared.items()], []
    for i in range(NODES[args.device]):
        memory = [f"queries{i}", f"parts{i}"] if own and args.device == "cuda" else []
        nodes.append(helper.make_node(
            op, ["q", "", "", f"past_k{i}", f"past_v{i}", "lengths", "total", "cos", "sin"],
            [f"y{i}", f"k{i}", f"v{i}", *memory], domain=DOMAIN if own else "com.microsoft", num_heads=args.heads,
            kv_num_heads=args.kv_heads, scale=args.size ** -0.5, softcap=0.0, local_window_size=-1, do_rotary=1,
            rotary_interleaved=0))
        inputs += [(f"past_{side}{i}", cached, ["b", args.kv_heads, "room", line]) for side in "kv"]
        outputs += [(f"y{i}", number, None), *((f"{side}{i}", cached, None) for side in "kv")]
    graph = helper.make_graph(nodes, "attention", [helper.make_tensor_value_info(*value) for value in inputs],
                              [helper.make_tensor_value_info(*value) for value in outputs])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.register_custom_ops_library(str(ops_library(args.device)))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    given = {"enable_cuda_graph": "1"} if args.device == "cuda" else {}
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[(PROVIDERS[args.device], given)])


def bound(found: onnxruntime.InferenceSession, kind: str, args: argparse.Namespace, rows: int, new: int,
          before: int) -> tuple[onnxruntime.InferenceSession, onnxruntime.IOBinding, list[Any]]:
    """A session with inputs and outputs at places of their own, which the list keeps."""
    dtype = np.float16 if args.device == "cuda" else np.float32
    rng, behind, room = np.random.default_rng(0), BEHIND[args.device] if kind == "int8" else 0, before + new
    shape = rows, args.kv_heads, room, args.size + behind
    past = [rng.integers(-127, 128, shape, np.int8) if behind else rng.standard_normal(shape, np.float32).astype(dtype)
            for _ in range(2)]
    for side in past if behind else ():
        side[..., args.size :] = np.array([0, 60, 0, 0], np.int8)[:behind]  # a scale in bfloat16
    query = rng.standard_normal((rows, new, (args.heads + 2 * args.kv_heads) * args.size), np.float32)
    tables = [rng.standard_normal((8192, args.size // 2), np.float32) for _ in range(2)]
    given = {"q": query.astype(dtype), "lengths": np.full(rows, room - 1, np.int32), "total": np.array(room, np.int32),
             "cos": tables[0].astype(dtype), "sin": tables[1].astype(dtype)}
    binding, kept = found.io_binding(), []

    def hold(value: np.ndarray, place: str) -> onnxruntime.OrtValue:
        kept.append(onnxruntime.OrtValue.ortvalue_from_numpy(value, place, 0))
        kept.append(value)  # on a CPU the memory is numpy's
        return kept[-2]

    for name, value in given.items():
        binding.bind_ortvalue_input(name, hold(value, "cpu" if name == "total" else args.device))
    for i in range(NODES[args.device]):
        for side, value in zip("kv", past, strict=True):
            binding.bind_ortvalue_input(f"past_{side}{i}", held := hold(value.copy(), args.device))
            binding.bind_ortvalue_output(f"{side}{i}", held)
        out = np.zeros((rows, new, args.heads * args.size), dtype)
        binding.bind_ortvalue_output(f"y{i}", hold(out, args.device))
    return found, binding, kept


if __name__ == "__main__":
    main()
