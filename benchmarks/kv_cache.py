"""The key/value cache in int8 beside the one in the graph's own type: memory, speed at a depth, and KL.

    python benchmarks/kv_cache.py --base AWQ_FOLDER --device cpu
    python benchmarks/kv_cache.py --device cuda                     # 3.8 B random integers, 32 heads of keys

Both models are built from one checkpoint and take turns in one process: a prompt of --depth tokens in chunks, then
--new tokens decoded at that depth. KL of int8 to the other, over a text of --depth tokens (--text, a file) that the
scales were not measured on: only where --base is a real model does it say anything.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from synthetic import random_awq_checkpoint

from phicli import Session, optimize
from phicli.benchmarking.turn import Case, Turn, measure
from phicli.evaluation.figures import Agreement, log_softmax
from phicli.inference.generator import PREFILL_CHUNK
from phicli.inference.runners import SessionRunner

TEXT = Path(__file__).parents[1] / "scripts" / "tiny_corpus" / "text" / "written_places.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="an AWQ checkpoint, instead of a random one")
    parser.add_argument("--layers", type=int, default=32, help="of the random one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--activations", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="phicli-kv-") as scratch:
        base = args.base or random_awq_checkpoint(Path(scratch) / "awq", args.layers, seed=0)
        folders = {kind: optimize(root=Path(scratch) / kind, base=str(base), device=args.device, kv_cache=kind,
                                  activations=args.activations, adapters=[]).folder for kind in ("float", "int8")}
        sessions = {kind: Session(folder, args.device, adapters=False) for kind, folder in folders.items()}
        depth = min(args.depth, sessions["float"].context - args.new)
        ids = sessions["float"].codec.encode_text(args.text.read_text(encoding="utf-8"))[:depth]
        turns: dict[str, list[Turn]] = {kind: [] for kind in sessions}
        for _ in range(args.rounds):
            for kind, session in sessions.items():
                turns[kind].append(measure(SessionRunner(session, endless=True), Case(len(ids), args.new)))
        found: dict[str, Any] = {
            kind: {"cache_bytes": cache_bytes(folders[kind], depth), **summary(turns[kind], len(ids))}
            for kind in sessions}
        found["int8"] |= agreement(*(session.logits(ids) for session in sessions.values()))
        print(json.dumps({"depth": depth, "device": args.device, **found}, indent=1))


def summary(turns: list[Turn], prompt: int) -> dict[str, Any]:
    decoded = [turn.rate for turn in turns]
    return {"prompt_rate": round(statistics.median(prompt / turn.first for turn in turns), 1),
            "decode_rate": round(statistics.median(decoded), 2), "decode_rates": [round(rate, 2) for rate in decoded]}


def cache_bytes(folder: Path, tokens: int) -> int:
    """What the keys and values of so many tokens take."""
    graph = onnx.load(folder / "base.onnx", load_external_data=False).graph
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    past = [value for value in graph.input if value.name.startswith("past_key_values.")]
    size = helper.tensor_dtype_to_np_dtype(past[0].type.tensor_type.elem_type).itemsize
    return len(past) * tokens * decoder["num_key_value_heads"] * decoder["head_size"] * size


def agreement(reference: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    found = Agreement()
    for start in range(0, len(logits), PREFILL_CHUNK):
        part = slice(start, start + PREFILL_CHUNK)
        found.add(log_softmax(reference[part]), log_softmax(logits[part]))
    return {"kl": found.kl, "top1": found.top1}


if __name__ == "__main__":
    main()
