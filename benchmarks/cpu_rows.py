"""What steps of several rows and prompts cost on a CPU, by whose products: ours, onnxruntime's, another build of ours.

    taskset -c 0 python benchmarks/cpu_rows.py models/phi/onnx-ao --rows 1,8,32 --threads 1
    taskset -c 0 python benchmarks/cpu_rows.py models/phi/onnx-ao --library ~/.cache/phicli/ops-…/libops-….so

All are open in one process and take turns, without adapters and with all of them and none mixed. A step: least and
median of the seconds between two tokens of all rows. Prompt: tokens of all prompts until the last row has its first
token. With --threads 1 the seconds are those of the processor, so that other work on it counts little.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from phicli.artifacts.stages import MANIFEST
from phicli.export.genai_config import GENAI_CONFIG
from phicli.inference import ops
from phicli.inference.engine import Engine, Finish, Piece, Request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of an ONNX model for a CPU")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--library", type=Path, help="another build of the library, beside the one of this machine")
    args = parser.parse_args()
    rows = [int(count) for count in args.rows.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = with_threads(args.folder, Path(scratch), args.threads)
        kinds = {"phicli": None, "onnxruntime": None} | ({"other": args.library} if args.library else {})
        engines = {kind: opened(folder, kind, library, max(8, *rows)) for kind, library in kinds.items()}
        for count in rows:
            measure(engines, count, args)
        for engine in engines.values():
            engine.close()


def with_threads(folder: Path, scratch: Path, threads: int) -> Path:
    """The folder with so many threads in its settings, so without what would say that they are others."""
    copied = shutil.copytree(folder, scratch / "model", copy_function=os.link if folder.stat().st_dev ==
                             scratch.stat().st_dev else shutil.copy2)
    (copied / MANIFEST).unlink(missing_ok=True)
    settings = json.loads((copied / GENAI_CONFIG).read_text())
    settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    (copied / GENAI_CONFIG).unlink()
    (copied / GENAI_CONFIG).write_text(json.dumps(settings))
    return copied


def opened(folder: Path, kind: str, library: Path | None, most: int) -> Engine:
    own = ops.ops_library
    if library:
        ops.ops_library = lambda *args, **kwargs: library.resolve()
    try:
        return Engine(folder, "cpu", "onnxruntime" if kind == "onnxruntime" else "phicli", max_batch=most,
                      prefix_cache=False, speculate="off")
    finally:
        ops.ops_library = own


def measure(engines: dict[str, Engine], count: int, args: argparse.Namespace) -> None:
    found = defaultdict(list)
    for turn in range(args.rounds + 1):
        for kind, engine in engines.items():
            for mixed in (False, True) if engine.adapter_names() else (False,):
                steps, prompt = decode(engine, count, mixed, args)
                if turn:  # the first one warms caches up
                    found[kind, mixed].append((steps, prompt))
    for (kind, mixed), turns in found.items():
        steps = [step for own, _ in turns for step in own]
        print(f"{count:3} rows, {'mixed' if mixed else 'base'}, {kind:11} step {min(steps) * 1e3:7.2f} ms, median "
              f"{statistics.median(steps) * 1e3:7.2f}; prompt {max(own for _, own in turns):6.0f} tokens/s, median "
              f"{statistics.median(own for _, own in turns):6.0f}", flush=True)


def decode(engine: Engine, count: int, mixed: bool, args: argparse.Namespace) -> tuple[list[float], float]:
    names = [*engine.adapter_names(), None] if mixed else [None]
    rng, clock = np.random.default_rng(0), time.process_time if args.threads == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in range(count)]
    done = threading.Semaphore(0)

    def deliver(number: int, event: Piece | Finish) -> None:
        if isinstance(event, Piece):
            times[number].append(clock())
        else:
            done.release()

    begun = clock()
    for number in range(count):
        ids = rng.integers(10, min(4000, engine.vocab_size), args.prompt).tolist()
        engine.submit(Request(ids, names[number % len(names)], max_tokens=args.new + 2 * count, ignore_eos=True),
                      lambda event, number=number: deliver(number, event))
    for _ in range(count):
        done.acquire()
    first, last = max(own[0] for own in times), min(own[-1] for own in times)
    together = [at for at in times[0] if first <= at <= last]
    return list(np.diff(together)), count * args.prompt / (first - begun)


if __name__ == "__main__":
    main()
