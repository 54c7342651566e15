"""Quantize then tune, or tune then quantize: which gives the better int4 model, seed by seed.

    python benchmarks/order.py MODEL ROOT                          # five seeds, 60 steps
    python benchmarks/order.py MODEL ROOT --device cuda --steps 200 --jobs 5

MODEL: a folder or an id. Both orders have the same rows, steps, learning rate, calibration and seed:

- quantize, tune: AWQ of the model, an adapter trained on it, which stays beside it.
- tune, quantize: an adapter trained on the unquantized model and merged into it, AWQ of the result.

Beside them the adapter of the second on the unquantized model (no quantization) and on the AWQ model (trained on other
weights than it runs on). Judged by the perplexity of held-out rows, both orders on the same rows in pairs. What was
made under ROOT before is not made again. Prints a table and, with --json FILE, writes all figures.
"""

import argparse
import json
import math
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phicli import evaluate, finetune, merge, quantize
from phicli.uncertainty import Resamples

DATA = Path(__file__).parents[1] / "data"
WAYS = ("original", "quantize, tune", "tune, quantize", "tune (float)", "tuned adapter on AWQ")
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # by freedom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at once, each in a process, GPUs in turn")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--data", default=str(DATA / "data_sample_travel.jsonl"))
    parser.add_argument("--eval-data", default=str(DATA / "data_eval_travel.jsonl"))
    parser.add_argument("--rows", type=int, help="of the held-out rows")
    parser.add_argument("--samples", type=int, default=128, help="sequences to calibrate on")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found, context = [], get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context, take_gpu, (context.Value("i"),)) as pool:
        for one in pool.map(partial(one_seed, args), range(args.seeds)):
            found.append(one)
            print(f"seed {one['seed']}: " + ", ".join(f"{way} {one['perplexity'][way]:.3f}" for way in WAYS))
            low, high = one["interval"]
            print(f"  tune, quantize has {one['ratio']:.4f} of the perplexity of quantize, tune ({low:.4f} to "
                  f"{high:.4f}, 95 % of resamples of the rows)", flush=True)
    report(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def take_gpu(taken: Any) -> None:
    """A process sees one of the GPUs, the next after that of the process before."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    with taken.get_lock():
        number, taken.value = taken.value, taken.value + 1
    gpus = shown.split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]


def one_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    common = {"root": args.root / f"seed-{seed}", "device": args.device, "seed": seed}
    trained = {**common, "data": args.data, "max_steps": args.steps, "eval_split": 0.0}
    awq = quantize(args.model, samples=args.samples, **common).folder
    after = finetune(args.model, base=str(awq), name="after", **trained).folder
    before = finetune(args.model, base=args.model, name="before", **trained).folder
    merged = merge(args.model, adapter="before", precision="int4", samples=args.samples, **common).folder
    stages = (args.model, f"{awq}+{after}", str(merged), f"{args.model}+{before}", f"{awq}+{before}")
    document = evaluate(args.model, root=common["root"], device=args.device, stages=stages, rows=args.rows,
                        eval_data=args.eval_data)
    measured = dict(zip(WAYS, document["stages"], strict=True))
    nll = {way: np.array(stage["blocks"]["nll"]) for way, stage in measured.items()}
    change = nll["tune, quantize"] - nll["quantize, tune"]
    return {"seed": seed, "rows": document["rows"], "tokens": document["tokens"],
            "perplexity": {way: stage["perplexity"] for way, stage in measured.items()},
            "ratio": math.exp(change.sum() / document["tokens"]),
            "interval": Resamples(np.array(document["blocks"])).interval(change, np.exp)}


def report(found: list[dict[str, Any]]) -> None:
    """Over the seeds; the interval is Student's, of the logarithm of the ratio."""
    for way in WAYS:
        values = [one["perplexity"][way] for one in found]
        print(f"{way:22} perplexity {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    logs = [math.log(one["ratio"]) for one in found]
    better = sum(ratio < 0 for ratio in logs)
    print(f"tune, quantize is better with {better} of {len(found)} seeds")
    if len(found) - 1 in T_95:
        half = T_95[len(found) - 1] * statistics.stdev(logs) / math.sqrt(len(found))
        middle, low, high = (math.exp(statistics.mean(logs) + way * half) for way in (0, -1, 1))
        print(f"ratio of perplexities {middle:.4f} ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
