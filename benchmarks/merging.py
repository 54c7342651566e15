"""What it costs to merge an adapter, in place of keeping it in a slot: quality of each way, then speed.

    python benchmarks/merging.py MODEL ROOT               # after `phicli run --model MODEL --root ROOT`
    python benchmarks/merging.py MODEL ROOT --speed       # speed alone, of ROOT/onnx-ao and ROOT/onnx-ao-travel

Quality: perplexity, and KL to the int4 base with the adapter and to the original with it, on held-out rows, on prose
(this project's docs) and on code (Python's standard library), of

- the original with the adapter, AWQ's scales undone: `phicli merge`;
- that in int4, calibrated on the adapter's rows too: `phicli merge --precision int4`;
- the int4 base with the adapter, unpacked and in int4 again, calibrated on these rows, and without them: what becomes
  of an adapter whose original, or rows, are gone.

Speed: decoding and first token of the base, with the adapter in its slot, and of the merged model, in turns.
"""

import argparse
import json
import shutil
import statistics
import sysconfig
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from phicli import evaluate, merge, optimize
from phicli.benchmarking.turn import Case
from phicli.benchmarking.turns import take_turns
from phicli.benchmarking.worker import Contender, Worker

REPOSITORY = Path(__file__).parents[1]
ROWS, HELD_OUT = (REPOSITORY / "data" / f"data_{name}_travel.jsonl" for name in ("sample", "eval"))
CODE = ("argparse", "heapq", "csv", "textwrap", "shelve", "queue", "sched", "glob")
LETTERS = 4000  # of each text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("root", type=Path)
    parser.add_argument("--adapter", default="travel")
    parser.add_argument("--data", default=str(ROWS), help="what it was trained on")
    parser.add_argument("--eval-data", default=str(HELD_OUT))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--samples", type=int, default=128, help="sequences to calibrate on, of rows and of text")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--speed", action="store_true", help="nothing else")
    args = parser.parse_args()
    if not args.speed:
        quality(args)
    speed(args)


def quality(args: argparse.Namespace) -> None:
    awq, adapter = args.root / "awq", args.root / "ft" / args.adapter
    common: dict[str, Any] = {"root": args.root, "device": args.device, "samples": args.samples}
    with tempfile.TemporaryDirectory(prefix="phicli-merging-") as name:
        scratch = Path(name)
        elsewhere = scratch / adapter.name  # as of a stranger: what it was trained on is not known
        elsewhere.mkdir()
        for file in adapter.glob("adapter_*"):
            shutil.copy(file, elsewhere)
        twice = {**common, "adapter": elsewhere, "base": awq, "precision": "int4"}
        ways = {
            "int4 base, adapter in its slot": f"{awq}+{adapter}",
            "original, merged": merge(args.model, adapter=adapter, **common).folder,
            "that in int4": merge(args.model, adapter=adapter, precision="int4", **common).folder,
            "int4 base, merged, int4": merge(args.model, **twice, own_rows=(args.data,),
                                             output=scratch / "rows").folder,
            "the same without rows": merge(args.model, **twice, output=scratch / "none").folder,
            "int4 base without the adapter": awq,
        }
        for kind, data in texts(scratch, args.eval_data).items():
            both = list(ways.values())
            measured = [evaluate(args.model, root=args.root, device=args.device, eval_data=data,
                                 output=scratch / f"{kind}.json", stages=tuple(map(str, stages)))["stages"]
                        for stages in (both, [both[1], both[0], *both[2:]])]
            measured[1][:2] = measured[1][1::-1]  # in the order of the ways again
            print(f"{kind}: perplexity, KL to the base with the adapter, to the original with it")
            for way, near, far in zip(ways, *measured, strict=True):
                print(f"  {way:32} {near['perplexity']:8.2f} {near['kl'] or 0:8.4f} {far['kl'] or 0:8.4f}", flush=True)


def texts(scratch: Path, held_out: str) -> dict[str, str]:
    """Files of rows to judge on, by their kind."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = {"prose": [path.read_text() for path in sorted((REPOSITORY / "docs" / "explained").glob("*.md"))],
             "code": [(library / f"{name}.py").read_text() for name in CODE]}
    for kind, pieces in found.items():
        rows = (json.dumps({"text": piece[:LETTERS]}) for piece in pieces)
        (scratch / f"{kind}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return {"rows": held_out, **{kind: str(scratch / f"{kind}.jsonl") for kind in found}}


def speed(args: argparse.Namespace) -> None:
    folder = args.root / "onnx-ao"
    target = "cpu" if args.device == "cpu" else "auto"
    merged = optimize(args.model, root=args.root, merge=args.adapter, device=target).folder
    contenders = [Contender("base", "phicli", str(folder)),
                  Contender("adapter in its slot", "phicli", str(folder), args.adapter),
                  Contender("merged", "phicli", str(merged))]
    with ExitStack() as running:
        turners = {one.name: running.enter_context(Worker(one)) for one in contenders}
        for name, case, series in take_turns(turners, [Case(64, 64), Case(512, 32)], args.rounds):
            first = [1e3 * turn.first for turn in series.turns]
            shares, before = series.shares(), series.shares(lambda turn: 1 / turn.first)
            best = max(turn.rate for turn in series.turns)
            print(f"{case.prompt:4} tokens of prompt, {name:20} {best:7.1f} tokens/s at best, "
                  f"{statistics.median(shares):.3f} of the base's; first token {min(first):7.1f} ms at best, "
                  f"{1 / statistics.median(before):.3f} of the base's time", flush=True)


if __name__ == "__main__":
    main()
