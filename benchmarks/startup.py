"""What a command's process takes beside its work, with `phicli.cli.quick_imports` and without, in turns.

    python benchmarks/startup.py                      # the built-in model
    python benchmarks/startup.py --model FOLDER --rounds 1 --steps 100 --device cuda

Each line: seconds of the processor, seconds of the process, seconds of its work as its manifest has them, and whether
the process takes at most 1.5 times the work and 3 s. The best of the rounds.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = Path(__file__).parent.parent / "data" / "data_sample_travel.jsonl"
OWN_IMPORT = ("from phicli.cli import quick_imports; quick_imports.install = lambda: None; "
              "from phicli.cli.entry import entry; entry()")
WAYS = {"quick": ["-m", "phicli"], "plain": ["-c", OWN_IMPORT]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of training")
    parser.add_argument("--samples", type=int, default=4, help="of calibration")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="phicli-startup-") as root:
        common = ["--model", args.model, "--root", root, "--device", args.device, "--force", "--json"]
        commands = {
            "quantize": ["--samples", str(args.samples), "--refine", "0"],
            "finetune": ["--data", str(ROWS), "--max-steps", str(args.steps), "--publish-anyway"],
            "optimize": ["--adapter", "travel"],
        }
        for command, options in commands.items():
            best: dict[str, tuple[float, float, float]] = {}
            for _ in range(args.rounds):
                for way, python in WAYS.items():
                    found = measure([*python, command, *options, *common])
                    best[way] = min(best.get(way, found), found, key=lambda taken: taken[1])
            for way, (cpu, whole, own) in best.items():
                good = "yes" if whole <= 1.5 * own + 3 else "no"
                print(f"{command}, {way}: {cpu:.2f} s of processor, process {whole:.2f} s, work {own:.2f} s; {good}",
                      flush=True)


def measure(arguments: list[str]) -> tuple[float, float, float]:
    """Seconds of the processor, of the process, and of its work."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    whole, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, whole, json.loads(done.stdout)["seconds"]


if __name__ == "__main__":
    main()
