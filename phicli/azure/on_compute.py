"""What a job's machine runs: the command, with its root kept outside of the machine all the while.

    python -m phicli.azure.on_compute JOB OUT

JOB is the folder that the job took along, OUT one that outlives the machine: there lie a copy of the root, refreshed
while the command runs, so that whoever comes after an interruption goes on from its checkpoint, and what it says.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from phicli.artifacts.reading import files_now
from phicli.artifacts.stages import MANIFEST
from phicli.azure.job_order import ORDER, ROOT, SETTINGS_FILE, unpacked

PROGRESS, LOG, RESULT, TAKEN = "progress.json", "log.txt", "result.txt", "taken.json"
EVERY, EVERY_COPY = 3.0, 30.0  # seconds between two words to the outside, two copies of the root
LONGEST_LINE, LONGEST_LOG = 2000, 4 << 20  # characters, bytes
COPYING = ".new-file"  # in the copy of a root: what a machine may leave half written
LOOKS = 3  # at a root that changes while it is copied


def main(job: Path, out: Path) -> int:
    order = json.loads((job / ORDER).read_text())
    out.mkdir(parents=True, exist_ok=True)
    if not (out / TAKEN).is_file():  # else the root's copy is of an earlier job, and so is what that one began with
        (out / COPYING).write_text(json.dumps(results(job / ROOT)))
        (out / COPYING).replace(out / TAKEN)
    with tempfile.TemporaryDirectory(prefix="phicli-job-") as scratch:
        root = Path(scratch) / ROOT
        before = out / ROOT if (out / ROOT).is_dir() else job / ROOT
        if before.is_dir():
            shutil.copytree(before, root, ignore=shutil.ignore_patterns(COPYING))
        arguments = [unpacked(text, job) for text in order["arguments"]]
        line = [sys.executable, "-m", "phicli", "--config", str(job / SETTINGS_FILE), "--progress", "json",
                *order["command"].split(), *arguments, "--root", str(root)]
        with (out / RESULT).open("wb") as result:
            process = subprocess.Popen(line, stdout=result, stderr=subprocess.PIPE, text=True, errors="replace")
        told = Told(out)
        listening = threading.Thread(target=told.listen, args=(process.stderr,))
        listening.start()
        copied = time.monotonic()
        while process.poll() is None:
            time.sleep(min(EVERY, 0.2 + (time.monotonic() - copied) / 10))
            told.write()
            if time.monotonic() - copied > EVERY_COPY:
                mirror(root, out / ROOT)
                copied = time.monotonic()
        listening.join()
        mirror(root, out / ROOT)
        told.state["exit"] = process.returncode
        told.write()
    return process.returncode


def results(root: Path) -> dict[str, str]:
    """What there is in a root: the hash of each stage's manifest, and of each file beside the stages."""
    found = [path for path in root.rglob("*") if path.is_file() and (path.name == MANIFEST or path.parent == root)]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


class Told:
    """What the command says: its state for a terminal elsewhere, its lines for a log, its figures for MLflow."""

    def __init__(self, out: Path):
        self.out, self.state, self.lines, self.bytes = out, dict[str, Any](), list[str](), 0
        self.figures, self.metrics = deque[tuple[str, float, int]](), _metrics()

    def listen(self, stream: Any) -> None:
        for line in stream:
            line = line.rstrip("\n")[:LONGEST_LINE]
            if self.bytes < LONGEST_LOG:
                self.lines.append(line)
                self.bytes += len(line.encode())
            print(line, file=sys.stderr, flush=True)  # the job's own log
            with suppress(ValueError):
                self.take(json.loads(line))

    def take(self, event: Any) -> None:
        if not isinstance(event, dict):
            return
        if event.get("event") == "error":
            self.state["error"] = event.get("text")
        if "task" in event:
            self.state |= {name: event.get(name) for name in ("task", "step", "total", "unit", "figures")}
            for name, value in (event.get("figures") or {}).items():
                with suppress(ValueError):  # a figure that is no number
                    number = float(str(value).removesuffix("%").replace(",", ""))
                    self.figures.append((f"{event['task']}/{name}", number, int(event.get("step") or 0)))

    def write(self) -> None:
        """Files whole, since some mounts show a file only once it is closed."""
        (self.out / PROGRESS).write_text(json.dumps(self.state))
        (self.out / LOG).write_text("".join(f"{line}\n" for line in tuple(self.lines)))
        while self.figures:  # not where the command waits to be listened to
            name, number, step = self.figures.popleft()
            if self.metrics:
                try:
                    self.metrics.log_metric(name, number, step=step)
                except Exception as e:  # figures are worth less than the work
                    print(f"MLflow: {e}", file=sys.stderr)
                    self.metrics = None


def _metrics() -> Any:
    """MLflow where the machine has a place for figures; a job's machine has."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    try:
        import mlflow
    except ImportError:
        return None
    return mlflow


def mirror(root: Path, copy: Path) -> None:
    """Make a folder the copy of another, to which a command may be writing: each file whole, or as it was before.

    Nothing is removed while the command changes what is there, since a result that is replaced is gone for a moment.
    """
    for _ in range(LOOKS):
        there = _stamps(root)
        for name in there:
            with suppress(FileNotFoundError):  # the command has removed it meanwhile
                _copy(root / name, copy / name, copy / COPYING)
        if _stamps(root) == there:
            for name in _stamps(copy).keys() - there:
                (copy / name).unlink()
            return


def _copy(source: Path, target: Path, fresh: Path) -> None:
    found = source.stat()
    if target.is_file() and _stamp(target.stat()) == _stamp(found):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, fresh)
    with suppress(OSError):  # a mount without times: copied again the next time
        os.utime(fresh, (found.st_mtime, found.st_mtime))
    fresh.replace(target)


def _stamps(folder: Path) -> dict[str, tuple[int, float]]:
    """All files but what a running command needs for itself: locks and unfinished results."""
    return {name: _stamp(found) for name, found in files_now(folder).items() if stat.S_ISREG(found.st_mode)
            and not any(".new-" in part or part.endswith(".lock") for part in Path(name).parts)}


def _stamp(found: os.stat_result) -> tuple[int, float]:
    return found.st_size, found.st_mtime


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
