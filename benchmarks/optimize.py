"""`phicli optimize` beside genai's own builder: seconds and memory for an AWQ checkpoint of Phi-3.5-mini's shape.

    python benchmarks/optimize.py --layers 4                  # a minute, 0.6 GB
    python benchmarks/optimize.py --methods phicli            # all 32 layers: 2.3 GB of disk, twice

Each runs in a process of its own, with start-up, on a checkpoint of random integers that was just written (so it is in
the file cache). Memory without file-backed pages is sampled 50 times a second; the other figure is the system's peak
of resident memory, which counts the pages of mapped files too. Prints a table, or --json.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from synthetic import random_awq_checkpoint

METHODS = ("phicli", "genai")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--head", choices=("int4", "int8"), default="int8")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--scratch", type=Path, help="where checkpoint and models are written (default: temporary)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="phicli-optimize-", dir=args.scratch))
    try:
        base = random_awq_checkpoint(scratch / "awq", args.layers, seed=0)
        rows = []
        for method in args.methods.split(","):
            out = scratch / "onnx"
            rows.append({"method": method, **measure(command(method, base, out, args), scratch)})
            rows[-1]["output_gb"] = size(out)
            shutil.rmtree(out, ignore_errors=True)
            print(rows[-1], file=sys.stderr, flush=True)
        report(rows, size(base), args)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def command(method: str, base: Path, out: Path, args: argparse.Namespace) -> list[str]:
    """Command lines that give the same model: int4, the head as asked for, activations in the device's default."""
    if method == "phicli":
        parts = ["phicli", "optimize", "--root", base.parent, "--base", base, "--output", out,
                 "--device", args.device, "--head", args.head]
    else:
        parts = ["onnxruntime_genai.models.builder", "-i", base, "-o", out, "-p", "int4", "-e", args.device,
                 "-c", base.parent / "cache", "--extra_options", "hf_token=false",
                 *(["matmul_mixed_precision=last_matmul:int8"] if args.head == "int8" else [])]
    return [sys.executable, "-m", *map(str, parts)]


def measure(arguments: list[str], scratch: Path) -> dict[str, Any]:
    """Run a command; seconds, both memory figures in GB (1e9 bytes), and its last line where it fails."""
    log = scratch / "log.txt"
    anonymous, begun = 0, time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            anonymous = max(anonymous, anonymous_bytes(process.pid))
            time.sleep(0.02)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    row = {"seconds": round(seconds, 1), "anonymous_gb": round(anonymous / 1e9, 2),
           "resident_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}
    return row if process.returncode == 0 else row | {"error": log.read_text().strip().rpartition("\n")[2][:200]}


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process that no file stands behind; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def size(folder: Path) -> float:
    return round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e9, 2)


def report(rows: list[dict[str, Any]], checkpoint_gb: float, args: argparse.Namespace) -> None:
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    if args.json:
        print(json.dumps({"machine": machine, "layers": args.layers, "device": args.device, "head": args.head,
                          "checkpoint_gb": checkpoint_gb, "rows": rows}, indent=2))
        return
    print(f"{args.layers} layers, {checkpoint_gb} GB checkpoint, --device {args.device}, head {args.head}; {machine}")
    print(f"{'method':8} {'seconds':>8} {'anonymous GB':>13} {'resident GB':>12} {'output GB':>10}")
    for row in rows:
        print(f"{row['method']:8} {row['seconds']:>8} {row['anonymous_gb']:>13} {row['resident_gb']:>12} "
              f"{row['output_gb']:>10} {row.get('error', '')}")


if __name__ == "__main__":
    main()
