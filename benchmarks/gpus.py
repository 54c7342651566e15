"""Finetune on 1, 2 and 4 GPUs of one host, at equal work for each: tokens a second, and how many times one GPU's.

    python benchmarks/gpus.py                        # 3.8 B random integers in Phi-3.5-mini's shape, 8 rows a GPU
    python benchmarks/gpus.py --gpus 1,2 --rounds 3

The commands themselves take turns, 1 2 4 1 2 4, with the same rows, in steps of 8 rows for each GPU. The best round
counts; tokens a second are those of the steps, without loading.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from synthetic import random_awq_checkpoint

ROWS = Path(__file__).parent.parent / "data" / "data_sample_travel.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="1,2,4", help="how many, with commas; more than there are, are left out")
    parser.add_argument("--rows", type=int, default=8, help="of a step, for each GPU")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=32)
    args = parser.parse_args()
    counts = [count for count in map(int, args.gpus.split(",")) if count <= torch.cuda.device_count()]
    rates: dict[int, list[float]] = {count: [] for count in counts}
    losses: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="phicli-gpus-") as scratch:
        base = random_awq_checkpoint(Path(scratch) / "awq", args.layers, seed=0)
        for _ in range(args.rounds):
            for count in counts:
                found = finetune(base, Path(scratch) / "root", count, args.rows * count, args.steps)
                rates[count].append(found["tokens_per_second"])
                losses[count] = found["train_loss_after"]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.rows} rows a GPU, {args.steps} steps")
    print("GPUs  tokens/s  times one  loss  all rounds")
    for count, found_rates in rates.items():
        best = max(found_rates)
        print(f"{count:4}  {best:8,.0f}  {best / max(rates[counts[0]]):9.2f}  {losses[count]:.3f}  "
              f"{', '.join(f'{rate:,.0f}' for rate in found_rates)}")


def finetune(base: Path, root: Path, gpus: int, rows: int, steps: int) -> dict[str, float]:
    """Figures of a run, from its manifest."""
    command = [sys.executable, "-m", "phicli", "finetune", "--base", base, "--root", root, "--data", ROWS, "--gpus",
               gpus, "--batch-size", rows, "--max-steps", steps, "--eval-split", 0, "--device", "cuda", "--force",
               "--json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)["quality"]


if __name__ == "__main__":
    main()
