"""Time and memory of `phicli inspect` on a large file of JSON Lines: conversations of about 600 bytes, no two alike.

    python benchmarks/inspect_large.py --gigabytes 5          # writes the file, inspects it, removes it
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

DATA = Path(__file__).parents[1] / "data" / "data_sample_travel.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "rows.jsonl"
        rows = write(path, int(options.gigabytes * 1e9))
        print(f"{rows:,} rows, {path.stat().st_size / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f}", flush=True)
        command = [sys.executable, "-m", "phicli", "inspect", str(path), "--model", options.model, "--json"]
        begun = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            peak, report = watched(process)
        seconds = time.monotonic() - begun
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(report)
        print(f"{found['rows']:,} rows in {seconds:.0f} s ({used.ru_utime + used.ru_stime:.0f} CPU seconds), "
              f"{peak / 1e6:.0f} MB in all processes, load {os.getloadavg()[0]:.1f}; "
              f"tokens of {found['tokens']['measured_rows']:,} rows; "
              + ", ".join(f"{w['code']} {w['count']:,}" for w in found["warnings"]))


def write(path: Path, size: int) -> int:
    """Rows of three answers each, in random order and with a number of their own, until the file has that size."""
    parts = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
    rng, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        for number in itertools.count():
            if written >= size:
                return number
            one, two = rng.choice(parts), rng.choice(parts)
            line = json.dumps({"messages": [
                {"role": "user", "content": f"{one['prompt']} And for traveller {number}: {two['prompt']}"},
                {"role": "assistant", "content": " ".join(mixed(rng, f"{one['response']} {two['response']}"))},
            ]}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode("utf-8"))
    return 0


def mixed(rng: random.Random, text: str) -> Iterator[str]:
    """The text's sentences in another order."""
    sentences = text.split(". ")
    rng.shuffle(sentences)
    yield from (f"{sentence.rstrip('.')}." for sentence in sentences)


def watched(process: "subprocess.Popen[bytes]") -> tuple[int, bytes]:
    """Highest sum of resident memory of a process and those that it starts, four times a second, and its output."""
    peak, main = 0, psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, sum(each.memory_info().rss for each in [main, *main.children(recursive=True)]))
        time.sleep(0.25)
    assert process.stdout
    return peak, process.stdout.read()


if __name__ == "__main__":
    main()
