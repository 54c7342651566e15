"""Faults of the surroundings: no space, no permission, no home, odd names, odd terminals, readers that go away."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import ENVIRONMENT, STEPS, TARGETS, Bench, leftovers


class Impossible(Exception):
    """This machine does not let the fault be made; says why."""


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A small file system in memory at the folder."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True,
                          text=True)
    if done.returncode:
        raise Impossible(f"mounting is refused: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


ROOM = {"quantize": 2 << 20, "finetune": 100 << 10, "optimize": 3 << 20, "evaluate": 64 << 10}  # less than they need


def no_space(bench: Bench, tries: int) -> int:
    """A file system that is full in the middle of every step: exit code 4; with space again, run goes on."""
    for step in STEPS:
        shutil.rmtree(bench.root, ignore_errors=True)
        with mounted(bench.root, 64 << 20):
            for before in STEPS[: STEPS.index(step)]:
                source, target = bench.whole / TARGETS[before], bench.root / TARGETS[before]
                shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
            free = shutil.disk_usage(bench.root).free
            with (bench.root / "filler").open("wb") as f:
                f.write(bytes(free - ROOM[step]))
            _fails_for_space(bench, bench.phicli(step), step)
            (bench.root / "filler").unlink()
            bench.check_recovered()
    return len(STEPS)


def file_limit(bench: Bench, tries: int) -> int:
    """No file may grow beyond a limit (RLIMIT_FSIZE), in every step: exit code 4; without the limit, run goes on."""
    for step in STEPS:
        bench.reset(STEPS[STEPS.index(step) - 1] if step != "quantize" else None)
        _fails_for_space(bench, bench.phicli(step, limit=64 << 10), step)
        bench.check_recovered()
    return len(STEPS)


def _fails_for_space(bench: Bench, done, step: str) -> None:
    assert done.code == 4 and not done.out and "Traceback" not in done.err, (step, done)
    assert not (bench.root / TARGETS[step]).exists(), step
    assert leftovers(bench.root) == [], step


def read_only(bench: Bench, tries: int) -> int:
    """A root that cannot be written: what only reads works, what is up to date is left alone, the rest exits with 4."""
    bench.reset()
    with mounted(bench.root, 64 << 20):
        shutil.copytree(bench.whole, bench.root, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", bench.root], check=True)
        assert all(state == "up to date" for state, _ in bench.states().values())
        assert bench.phicli("run").code == 0
        assert bench.phicli("chat", "--prompt", "Where to?").code == 0
        for step in STEPS:
            done = bench.phicli(step, "--force")
            assert done.code == 4 and "Read-only" in done.err and not done.out, (step, done)
    return 3 + len(STEPS)


def odd_names(bench: Bench, tries: int) -> int:
    """Spaces, quotes, names in other scripts and `..` in the paths of root, rows and settings: the whole lab runs."""
    odd = bench.folder / "it's a \"lab\" 東京 ü"
    (odd / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("phicli.toml", "rows.jsonl", "held_out.jsonl", "calibration.txt"):
        shutil.copy(bench.folder / name, odd / name)
    done = bench.phicli("run", "--root", "../sub/../la b's", "--data", "../rows.jsonl", "--eval-data",
                        odd / "held_out.jsonl", cwd=odd / "sub", PHICLI_CONFIG=str(odd / "phicli.toml"),
                        PHICLI_QUANTIZE_CALIBRATION=str(odd / "calibration.txt"))
    assert done.code == 0, done.err
    assert (odd / "la b's" / "onnx-ao" / "adapters" / "travel.onnx_adapter").is_file()
    done = bench.phicli("status", "--json", "--root", odd / "la b's", "--data", odd / "rows.jsonl", "--eval-data",
                        odd / "held_out.jsonl", cwd=odd)
    assert all(link["state"] == "up to date" for link in json.loads(done.out)), done.out
    return 1


def plain_terminal(bench: Bench, tries: int) -> int:
    """LC_ALL=C, ASCII streams and a terminal of 20 columns: every reading command works, no traceback."""
    bench.reset()
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "PYTHONCOERCECLOCALE": "0"}
    commands = (("run",), ("status",), ("status", "--json"), ("inspect", "rows.jsonl"), ("config",), ("evaluate",),
                ("chat", "--prompt", "Wo ist 東京?"), ("quantize", "--help"), ("quantize", "--model", "ö"))
    for argv in commands:
        done = bench.process(*argv, **env)
        assert done.code == (3 if "ö" in argv else 0) and (done.out + done.err).isascii(), (argv, done)
        assert "Traceback" not in done.err
    return len(commands)


def no_home(bench: Bench, tries: int) -> int:
    """HOME that cannot be written, or is no folder at all: the whole lab runs."""
    for home in ("/proc/none", "/dev/null"):
        bench.reset(None if home == "/proc/none" else "evaluate")
        env = {"HOME": home, "HF_HOME": f"{home}/x", "XDG_CACHE_HOME": f"{home}/x"}
        done = bench.process("run", **env)
        assert done.code == 0 and bench.differences() == [], done.err
        assert bench.process("chat", "--adapter", "travel", "--prompt", "Where to?", **env).code == 0
    return 4


def reader_gone(bench: Bench, tries: int) -> int:
    """Stdout closed after the first line (`| head -1`), or from the start (`>&-`): no traceback, no harm."""
    bench.reset()
    commands = ("status", "config", "run", "evaluate", "inspect rows.jsonl", "chat --prompt Where?", "--help")
    for command in commands:
        for closed in ("| head -c 1 >/dev/null", ">&-"):
            line = f"{sys.executable} -m phicli {command} {closed}; exit ${{PIPESTATUS[0]}}"
            done = subprocess.run(["bash", "-c", line], cwd=bench.folder, env=ENVIRONMENT, timeout=120,
                                      capture_output=True, text=True)
            assert done.returncode == 0 and "Traceback" not in done.stderr, (line, done)
            assert "Exception" not in done.stderr, done.stderr
    bench.check_recovered()
    return 2 * len(commands)
