"""How often `phicli gate` raises a false alarm: the lab built anew and judged, again and again.

    python benchmarks/gate_runs.py tiny ROOT                       # 20 builds of the same settings
    python benchmarks/gate_runs.py tiny ROOT --seeds               # each with another seed
    python benchmarks/gate_runs.py MODEL ROOT --steps 60 --device cuda

The first build is accepted, each of the others is made from nothing and judged with its speed. Prints each failure.
"""

import argparse
import shutil
from pathlib import Path

from phicli import finetune, optimize, quantize
from phicli.config.measuring import GateConfig
from phicli.steps.gate import gate

DATA = Path(__file__).parents[1] / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("root", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rows", type=int, help="of the held-out rows")
    parser.add_argument("--seeds", action="store_true", help="another one for each build")
    parser.add_argument("--tolerance", type=float, default=1.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    alarms = 0
    for run in range(args.runs + 1):
        root = args.root / "build"
        shutil.rmtree(root, ignore_errors=True)
        common = {"root": root, "device": args.device}
        seed = {"seed": run if args.seeds else 0}
        quantize(args.model, samples=args.samples, **common, **seed)
        finetune(args.model, data=str(DATA / "data_sample_travel.jsonl"), max_steps=args.steps, **common, **seed)
        optimize(args.model, **common)
        result = gate(GateConfig(
            model=args.model, root=str(root), device=args.device, eval_data=str(DATA / "data_eval_travel.jsonl"),
            rows=args.rows, tolerance=args.tolerance, accept=not run, accepted=str(args.root / "accepted.json")))
        alarms += bool(result.failed)
        said = "; ".join(f"{one.name} {one.of} {one.found} (limit {one.limit})" for one in result.failed) or "passed"
        print(f"run {run}: {said if run else 'accepted'}", flush=True)
    print(f"false alarms: {alarms} of {args.runs}")


if __name__ == "__main__":
    main()
