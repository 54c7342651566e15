"""Does harm to a small lab, fault by fault, and prints what became of it: `make torture`.

Every fault is a function of tests/faults, which `make test` runs too, with fewer kills. It gives the number of tries
and raises where one of them ended badly. What strangers' files can do is in tests/strangers: a second table.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "strangers"))

import damages
import kills
import surroundings
from bench import Bench
from strangers_table import strangers_rows

FAULTS: tuple[Callable[[Bench, int], int], ...] = (
    kills.killed, kills.interrupted, kills.two_at_once, kills.interrupted_while_waiting, kills.removed,
    kills.four_chats, damages.damaged_stages, damages.damaged_inputs, damages.changed_while_running, damages.future,
    surroundings.no_space, surroundings.file_limit, surroundings.read_only, surroundings.odd_names,
    surroundings.plain_terminal, surroundings.no_home, surroundings.reader_gone,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", nargs="*", default=[], help="names of faults")
    parser.add_argument("--write", type=Path, help="file for the table, Markdown")
    options = parser.parse_args()
    begun, rows, failed = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "bench")
        for fault in FAULTS:
            if options.only and fault.__name__ not in options.only:
                continue
            what, _, outcome = " ".join((fault.__doc__ or "").split()).partition(": ")
            start = time.monotonic()
            try:
                tries = fault(bench, options.kills)
                row = (what, f"{tries} of {tries}", outcome)
            except surroundings.Impossible as e:
                row = (what, "not here", str(e))
            except Exception:
                failed += 1
                row = (what, "FAILED", outcome)
                traceback.print_exc()
            rows.append(row)
            print(f"{fault.__name__}: {row[1]}, {time.monotonic() - start:.0f} s", flush=True)
        bench.close()
    text = table("fault", rows, time.monotonic() - begun)
    if not options.only:
        begun = time.monotonic()
        rows, worse = strangers_rows()
        failed += worse
        text += "\n" + table("stranger's fault", rows, time.monotonic() - begun)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 1 if failed else 0


def table(kind: str, rows: list[tuple[str, str, str]], seconds: float) -> str:
    lines = [f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.system()}, "
             f"{int(seconds // 60)} min {int(seconds % 60)} s, `make torture`", "",
             f"| {kind} | as it should be | how that is |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {what} | {tries} | {outcome} |" for what, tries, outcome in rows]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
