"""A small lab to be harmed: commands as processes, the result of an uninterrupted run, and comparison with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from forks import Forks

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}  # the phicli beside these tests, wherever one is installed
SETTINGS = """
model = "tiny"
data = "rows.jsonl"
eval_data = "held_out.jsonl"
device = "cpu"
root = "lab"
[quantize]
samples = 8
seq_len = 64
calibration = "calibration.txt"
[finetune]
max_steps = 4
batch_size = 2
lora_r = 4
seq_len = 64
checkpoint_steps = 1
[evaluate]
rows = 2
[chat]
max_new_tokens = 8
"""
STEPS = ("quantize", "finetune", "optimize", "evaluate")
TARGETS = {"quantize": "awq", "finetune": "ft/travel", "optimize": "onnx-ao", "evaluate": "evaluation.json"}
VARYING = ("seconds", "created", "check", "tokens_per_second", "peak_memory", "phases")


@dataclass
class Done:
    code: int
    out: str
    err: str


class Running:
    """A command under way."""

    def __init__(self, bench: "Bench", pid: int, streams: Path):
        self.bench, self.pid, self.streams = bench, pid, streams

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def err(self) -> str:
        return self._text("err")

    def out(self) -> str:
        return self._text("out")

    def _text(self, name: str) -> str:
        file = Path(f"{self.streams}.{name}")
        return file.read_text(errors="replace") if file.is_file() else ""

    def wait(self) -> Done:
        code = self.bench.forks.wait(self.pid)
        return Done(code, self.out(), self.err())


class Bench:
    """A folder with settings and rows, `lab` in it the root under test and `whole` what an uninterrupted run made."""

    def __init__(self, folder: Path, thorough: bool = True):
        self.thorough = thorough  # recover after every single fault, not only after those where something can be left
        self.folder, self.root, self.whole = folder, folder / "lab", folder / "whole"
        (folder / "streams").mkdir(parents=True)
        (folder / "phicli.toml").write_text(SETTINGS)
        for name, count in (("rows", 60), ("held_out", 8)):
            source = "data_sample_travel" if name == "rows" else "data_eval_travel"
            lines = (REPOSITORY / "data" / f"{source}.jsonl").read_bytes().splitlines(keepends=True)[:count]
            (folder / f"{name}.jsonl").write_bytes(b"".join(lines))
        text = (REPOSITORY / "phicli" / "quantization" / "calibration.txt").read_text(encoding="utf-8")
        (folder / "calibration.txt").write_text(text[:20_000], encoding="utf-8")
        self.forks = Forks(ENVIRONMENT)
        self.started = 0
        begun = time.monotonic()
        assert self.phicli("run").code == 0
        shutil.rmtree(self.root)
        begun = time.monotonic()
        done = self.phicli("run")  # the second one is timed: the first reads the libraries' files
        self.seconds = time.monotonic() - begun
        assert done.code == 0, done.err
        shutil.rmtree(self.root / "logs", ignore_errors=True)
        shutil.copytree(self.root, self.whole)
        self.reference = content(self.whole)

    def start(self, *argv: object, cwd: Path | None = None, limit: int | None = None, **env: str) -> Running:
        self.started += 1
        streams = self.folder / "streams" / str(self.started)
        pid = self.forks.start(*argv, cwd=cwd or self.folder, out=streams, env=env, limit=limit)
        return Running(self, pid, streams)

    def phicli(self, *argv: object, **more) -> Done:
        return self.start(*argv, **more).wait()

    def process(self, *argv: object, **env: str) -> Done:
        """As a process of its own, where the environment has to be there from the start."""
        done = subprocess.run([sys.executable, "-m", "phicli", *map(str, argv)], cwd=self.folder, capture_output=True,
                              env={**ENVIRONMENT, **env}, timeout=300)
        return Done(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    def reset(self, upto: str | None = "evaluate") -> None:
        """The root as an uninterrupted run leaves it after a step; None: no root."""
        shutil.rmtree(self.root, ignore_errors=True)
        if upto is not None:
            self.root.mkdir()
        for step in STEPS[: STEPS.index(upto) + 1] if upto else ():
            source, target = self.whole / TARGETS[step], self.root / TARGETS[step]
            target.parent.mkdir(exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)

    def states(self) -> dict[str, tuple[str, str]]:
        """step -> (state, why), as status gives them."""
        done = self.phicli("status", "--json")
        assert done.code == 0, done.err
        return {link["step"]: (link["state"], link["why"]) for link in json.loads(done.out)}

    def check_recovered(self, always: bool = False) -> None:
        """`run` ends well and leaves what an uninterrupted run leaves, nothing else."""
        if not (self.thorough or always):
            return
        done = self.phicli("run")
        assert done.code == 0, done.err
        assert self.differences() == [], "\n".join(self.differences()[:9])
        assert leftovers(self.root) == []

    def differences(self) -> list[str]:
        """Where the root differs from what an uninterrupted run makes."""
        have = content(self.root)
        return [f"{name}: {have.get(name)} instead of {value}" for name, value in
                {**dict.fromkeys(have), **self.reference}.items() if have.get(name) != value]

    def close(self) -> None:
        self.forks.close()


def content(root: Path) -> dict[str, object]:
    """All that stages say and hold, hashes included, without times: "awq/phicli.json/settings/bits" -> 4."""
    files = [*sorted(root.rglob("phicli.json")), root / "evaluation.json"]
    return dict(_leaves({p.relative_to(root).as_posix(): json.loads(p.read_text()) for p in files}, ""))


def _leaves(value, name: str):
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if not any(word in str(key) for word in VARYING):
                yield from _leaves(inner, f"{name}/{key}")
    else:
        yield name, value


def leftovers(root: Path) -> list[str]:
    """Names of hidden files and folders: all that is temporary, but for checkpoints that a finetune goes on from."""
    found = sorted(p.relative_to(root).as_posix() for p in root.rglob(".*"))
    return [name for name in found if not name.endswith(".checkpoint")]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to happen in another process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.001)
