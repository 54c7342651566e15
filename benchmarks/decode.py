"""What an adapter costs while decoding, for each way in which it can enter the graph.

    python benchmarks/decode.py                                  # 3.8 B random integers, 10 GB of disk
    python benchmarks/decode.py --layers 8 --ranks 16

One model is built; each variant is another graph on its weights, in a process of its own. Decoding: a prompt, then one
token at a time. The processes take turns, and each is compared with the model without an adapter right before and after
it: the speed of memory that is shared with other machines changes within seconds. A table, or --json.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from safetensors.numpy import save_file
from synthetic import SHAPE, random_awq_checkpoint, random_gguf

from phicli import optimize
from phicli.artifacts.stages import MANIFEST
from phicli.benchmarking.turn import Case, Turn
from phicli.benchmarking.turns import Series, take_turns
from phicli.benchmarking.worker import Contender, Worker
from phicli.checkpoints.peft_folder import read_peft
from phicli.export import graph_inputs, resident
from phicli.export.adapters import convert_adapter, install_adapters
from phicli.export.slots import MODEL
from phicli.hardware.devices import usable_cores

BANDWIDTH = "reading memory"
WAYS = ("inputs", "float", "int8", "fused", "fused-int8")  # the last on a CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--base", type=Path, help="an AWQ checkpoint of this shape, instead of a random one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ranks", default="16,64")
    parser.add_argument("--ways", default=",".join(WAYS[:4]), help="float and int8: resident adapters' weights")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="a Python that has llama-cpp-python: beside it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.used = []
    scratch = Path(tempfile.mkdtemp(prefix="phicli-decode-"))
    try:
        base = args.base or random_awq_checkpoint(scratch / "awq", args.layers, seed=0)
        built, _ = optimize(root=scratch, base=str(base), device=args.device, activations="int8",
                            head="int8", adapter_layout="resident")
        args.bytes = bytes_read(built, args.prompt + args.new / 2)
        variants: dict[str, tuple[Path, str, str]] = {"no adapter": (built, "", "auto")}
        if args.device == "cpu":
            variants["no adapter, onnxruntime's kernels"] = (built, "", "onnxruntime")
        for rank in map(int, filter(None, args.ranks.split(","))):
            loras = read_peft(random_peft(scratch / f"peft-{rank}", args.layers, rank))
            for way in args.ways.split(","):
                variants[f"{way}, rank {rank}"] = (variant(built, scratch / f"{way}-{rank}", way, loras), "a", "auto")
        report(measure(variants, args, scratch), args)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def random_peft(folder: Path, layers: int, rank: int) -> Path:
    """An adapter on all linears, with small random numbers."""
    hidden, wide = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    linears = {"self_attn.qkv_proj": (hidden, 3 * hidden), "self_attn.o_proj": (hidden, hidden),
               "mlp.gate_up_proj": (hidden, 2 * wide), "mlp.down_proj": (wide, hidden)}
    rng = np.random.default_rng(rank)
    tensors = {}
    for layer in range(layers):
        for name, (inputs, outputs) in linears.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = 0.01 * rng.standard_normal((rank, inputs), np.float32)
            tensors[f"{key}.lora_B.weight"] = 0.01 * rng.standard_normal((outputs, rank), np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    return folder


def variant(built: Path, folder: Path, way: str, loras: dict[str, Any]) -> Path:
    """A folder with another graph on the same weights, which are linked, and one adapter, "a"."""
    (folder / "adapters").mkdir(parents=True)
    for path in built.iterdir():
        if path.is_file() and path.name not in (MODEL, resident.BASE, MANIFEST):
            os.link(path, folder / path.name)
    if way == "inputs":
        shutil.copyfile(built / resident.BASE, folder / MODEL)
        graph_inputs.add_slots(folder / MODEL)
        convert_adapter(folder, loras, folder / "adapters" / "a.onnx_adapter", folder)
    else:
        layout, weights = ("fused" if "fused" in way else "resident", "int8" if "int8" in way else "float")
        os.link(built / resident.BASE, folder / resident.BASE)
        install_adapters(folder, {"a": loras}, layout, weights)
    return folder


def bytes_read(folder: Path, tokens: float) -> dict[str, float]:
    """What a token has to read: constants of all products in the graph without adapters, keys and values before it."""
    graph = onnx.load(folder / resident.BASE, load_external_data=False).graph
    sizes = {t.name: int(np.prod(t.dims)) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
             for t in graph.initializer}
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    cache = next(i.type.tensor_type.elem_type for i in graph.input if i.name.startswith("past_key_values."))
    keys = tokens * decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"]
    products = (node for node in graph.node if "MatMul" in node.op_type)
    return {"weights": sum(sizes.get(name, 0) for node in products for name in node.input),
            "cache": 2 * keys * helper.tensor_dtype_to_np_dtype(cache).itemsize}


def read_bandwidth(cores: int) -> float:
    """Bytes a second that as many threads read of 1 GB of memory, again and again for a second: products of vectors."""
    numbers = np.ones((cores, 2**28 // cores), np.float32)
    with ThreadPoolExecutor(cores) as pool:
        begun, times = time.perf_counter(), 0
        while (seconds := time.perf_counter() - begun) < 1:
            list(pool.map(lambda row: np.dot(row, row), numbers))
            times += 1
    return times * numbers.nbytes / seconds


class Bandwidth:
    """Reading memory, as a contender: its "tokens/s" are bytes a second."""

    def turn(self, case: Case) -> Turn:
        return Turn(0.0, (1 / read_bandwidth(usable_cores()),))


def measure(variants: dict[str, tuple[Path, str, str]], args: argparse.Namespace,
            scratch: Path) -> list[dict[str, Any]]:
    case = Case(args.prompt, args.new)
    with ExitStack() as running:
        turners: dict[str, Any] = {name: running.enter_context(Worker(Contender(
            name, "phicli", str(folder), adapter or None, kernels=kernels)))
            for name, (folder, adapter, kernels) in variants.items()}
        if args.llama_cpp:
            file = random_gguf(scratch / "model.gguf", args.layers)
            turners["llama.cpp, Q4_0"] = running.enter_context(Worker(
                Contender("llama.cpp", "llama.cpp", str(file), context=args.prompt + args.new), usable_cores(),
                args.llama_cpp))
        if args.device == "cpu":
            turners[BANDWIDTH] = Bandwidth()
        found = {name: series for name, _, series in take_turns(turners, [case], args.rounds)}
    if read := found.pop(BANDWIDTH, None):
        args.used = [sum(plain.rate for plain in beside) / 2 * sum(args.bytes.values()) / turn.rate
                     for turn, beside in zip(read.turns, read.beside, strict=True)]
    return [row(name, turners[name].load, series) for name, series in found.items()]


def row(name: str, load: float, series: Series) -> dict[str, Any]:
    """The best of all turns, and the shares of the tokens a second without an adapter, right before and after."""
    shares = series.shares()
    return {"way": name, "load": load, "first": min(turn.first for turn in series.turns),
            "rate": max(turn.rate for turn in series.turns), "share": statistics.median(shares),
            "shares": [round(share, 3) for share in shares]}


def report(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {os.cpu_count()} cores"
    if args.json:
        print(json.dumps({"machine": machine, "layers": args.layers, "bytes_a_token": args.bytes,
                          "of_read_bandwidth": args.used, "rows": rows}, indent=2))
        return
    print(f"{args.layers} layers, {args.prompt} tokens of prompt, {args.new} decoded; {machine}")
    if args.used:
        weights, cache = (args.bytes[what] / 1e9 for what in ("weights", "cache"))
        print(f"without adapters {weights:.2f} GB of weights and {cache:.2f} GB of keys and values are read a token: "
              f"{statistics.median(args.used):.2f} ({min(args.used):.2f} to {max(args.used):.2f}) of what "
              f"{usable_cores()} threads read right before and after")
    print(f"{'adapter':34} {'tokens/s':>9} {'share, median':>14} {'from, to':>12} {'first token, ms':>16} "
          f"{'load, s':>8}")
    for row in rows:
        print(f"{row['way']:34} {row['rate']:>9.2f} {row['share']:>14.2f} {min(row['shares']):>6.2f} "
              f"{max(row['shares']):>5.2f} {row['first'] * 1e3:>16.1f} {row['load']:>8.2f}")


if __name__ == "__main__":
    main()
