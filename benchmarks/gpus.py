"""Finetune and quantize on 1, 2 and 4 GPUs of one host: how many times as fast as one; memory of a base in parts.

    python benchmarks/gpus.py                        # Phi-4-mini's shape, 16 layers to train, 4 to quantize
    python benchmarks/gpus.py --gpus 1,2 --rounds 3 --only finetune

finetune: 8 rows for each GPU in a step, so equal work for each; tokens a second of the steps, without loading.
shard: the same with `--shard`, where each GPU holds a part of the base; what the first one has allocated at most.
quantize: the same calibration (128 x 512 tokens, 128 more that the model writes, 200 steps of refining), shared out;
seconds in the layers, of which "refine" is most, and of the whole work. Models are random: numbers in weights do not
matter. The commands themselves take turns, and each line is printed when it is known; the best round counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from synthetic import PHI4, random_awq_checkpoint, random_phi

ROWS = Path(__file__).parent.parent / "data" / "data_sample_travel.jsonl"
MODES = ("finetune", "shard", "quantize")
OUTSIDE = ("start", "write")  # phases that are not of the layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="1,2,4", help="how many, with commas; more than there are, are left out")
    parser.add_argument("--only", choices=MODES)
    parser.add_argument("--rows", type=int, default=8, help="of a step, for each GPU")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", type=int, default=16, help="of the model to train on")
    parser.add_argument("--quantize-layers", type=int, default=4)
    args = parser.parse_args()
    counts = [count for count in map(int, args.gpus.split(",")) if count <= torch.cuda.device_count()]
    modes = [mode for mode in MODES if args.only in (None, mode)]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Phi-4-mini's shape, {args.layers} layers to "
          f"train on, {args.quantize_layers} to quantize; {args.rows} rows a GPU, {args.steps} steps", flush=True)
    best: dict[str, dict[int, float]] = defaultdict(dict)
    with tempfile.TemporaryDirectory(prefix="phicli-gpus-") as scratch:
        root = Path(scratch)
        if "quantize" in modes:
            random_phi(root / "phi", args.quantize_layers, seed=0, shape=PHI4)
        if args.only != "quantize":
            random_awq_checkpoint(root / "awq", args.layers, seed=0, shape=PHI4)
        for _ in range(args.rounds):
            for mode in modes:
                for count in counts if mode != "shard" else [count for count in counts if count > 1]:
                    rate, told = run(mode, root, count, args)
                    best[mode][count] = max(rate, best[mode].get(count, 0.0))
                    one = best["finetune" if mode == "shard" else mode].get(counts[0], rate)
                    print(f"{mode:9} {count} GPUs: {told}, {rate / one:.2f} times {counts[0]}", flush=True)
    for mode, rates in best.items():
        one = best["finetune" if mode == "shard" else mode].get(counts[0], 0.0)
        print(f"best {mode:9} " + ", ".join(f"{count}: {rate / one:.2f}" for count, rate in rates.items() if one))


def run(mode: str, root: Path, gpus: int, args: argparse.Namespace) -> tuple[float, str]:
    """How fast a command is, and its figures in words."""
    more: list[Any] = ["--gpus", gpus, "--root", root / "root", "--device", "cuda", "--force", "--json"]
    if mode == "quantize":
        found = phicli("quantize", "--model", root / "phi", *more)
        phases = found["quality"]["phase_seconds"]
        layers = sum(seconds for phase, seconds in phases.items() if phase not in OUTSIDE)
        each = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())
        return 1 / layers, f"{layers:.1f} s in the layers, {found['seconds']:.1f} s in all ({each})"
    found = phicli("finetune", "--base", root / "awq", "--data", ROWS, "--batch-size", args.rows * gpus, "--max-steps",
                   args.steps, "--eval-split", 0, *(["--shard"] if mode == "shard" else []), *more)["quality"]
    rate = found["tokens_per_second"]
    return rate, f"{rate:,.0f} tokens/s, {found['gpu_bytes'] / 1e9:.2f} GB, loss {found['train_loss_after']:.3f}"


def phicli(*command: Any) -> dict[str, Any]:
    """The manifest of a command's result."""
    done = subprocess.run([sys.executable, "-m", "phicli", *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
