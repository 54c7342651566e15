"""Faults of files: truncated, a bit flipped, changed while a step runs, dated into the future."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from bench import STEPS, TARGETS, Bench, leftovers, until
from kills import working


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    """One bit in the middle, and the time of modification as it was."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# step whose result it is, file in it, command that reads it next
STAGE_FILES = (
    ("quantize", "model.safetensors", ("finetune", "--force")),
    ("quantize", "tokenizer.json", ("finetune", "--force")),
    ("quantize", "config.json", ("optimize", "--force")),
    ("quantize", "phicli.json", ("finetune", "--force")),
    ("finetune", "adapter_model.safetensors", ("optimize", "--force")),
    ("finetune", "adapter_config.json", ("optimize", "--force")),
    ("finetune", "phicli.json", ("optimize", "--force")),
    ("optimize", "model.onnx", ("chat", "--prompt", "Where to?")),
    ("optimize", "model.onnx.data", ("chat", "--prompt", "Where to?")),
    ("optimize", "genai_config.json", ("chat", "--prompt", "Where to?")),
    ("optimize", "tokenizer.json", ("chat", "--prompt", "Where to?")),
    ("optimize", "adapters/travel.onnx_adapter", ("chat", "--adapter", "travel", "--prompt", "Where to?")),
    ("optimize", "phicli.json", ("chat", "--prompt", "Where to?")),
    ("evaluate", "", None),
)


def damaged_stages(bench: Bench, tries: int, harms: tuple[Callable, ...] = (truncate, flip)) -> int:
    """Every kind of file of every stage: status names it, the next command refuses it, run makes it again."""
    for harm in harms:
        for step, name, reader in STAGE_FILES:
            bench.reset()
            path = bench.root / TARGETS[step] / name if name else bench.root / TARGETS[step]
            harm(path)
            state, why = bench.states()[step]
            assert state == "broken" and path.name in why, (harm, step, name, state, why)
            if reader:
                done = bench.phicli(*reader)
                assert done.code == 3 and path.name in done.err and not done.out, (harm, path, done)
                assert "try: phicli" in done.err and "Traceback" not in done.err
            if step in ("optimize", "evaluate") or name == "adapter_model.safetensors":  # the quick ones to make
                bench.check_recovered()
    return len(harms) * len(STAGE_FILES)


def damaged_inputs(bench: Bench, tries: int) -> int:
    """The original's weights and tokenizer, rows and calibration: named, exit code 3, nothing made of them."""
    from phicli.hub.models import BUILT_IN

    cases = (
        ("quantize", "model/model.safetensors", "model.safetensors"),
        ("quantize", "model/tokenizer.json", "tokenizer.json"),
        ("quantize", "model/config.json", "config.json"),
        ("finetune", "rows.jsonl", "rows.jsonl:"),
        ("evaluate", "held_out.jsonl", "held_out.jsonl:"),
    )
    for step, name, named in cases:
        bench.reset(STEPS[STEPS.index(step) - 1] if step != "quantize" else None)
        shutil.copytree(BUILT_IN / "tiny", bench.folder / "model", dirs_exist_ok=True)
        whole = (bench.folder / name).read_bytes()
        try:
            (bench.folder / name).write_bytes(whole[:-40])
            done = bench.phicli(step, "--model", "model", "--root", "lab")
        finally:
            (bench.folder / name).write_bytes(whole)
        assert done.code == 3 and named in done.err and not done.out, done
        assert "Traceback" not in done.err and not (bench.root / TARGETS[step]).exists()
    return len(cases)


def changed_while_running(bench: Bench, tries: int) -> int:
    """A file that a step reads changes meanwhile: exit code 3, nothing published."""
    inputs = {"quantize": "calibration.txt", "finetune": "rows.jsonl", "optimize": "lab/ft/travel/adapter_config.json",
              "evaluate": "held_out.jsonl"}
    for step, name in inputs.items():
        bench.reset(STEPS[STEPS.index(step) - 1] if step != "quantize" else None)
        path = bench.folder / name
        whole = path.read_bytes()
        running = bench.start(step)
        until(lambda step=step: working(bench, step))
        try:
            path.write_bytes(whole.replace(b"a", b"e"))
            done = running.wait()
        finally:
            path.write_bytes(whole)
        assert done.code == 3 and f"changed while {step} ran" in done.err, done
        assert not (bench.root / TARGETS[step]).exists()
        assert leftovers(bench.root) == []
        bench.check_recovered()
    return len(inputs)


def future(bench: Bench, tries: int) -> int:
    """The clock was ahead and has been set back: files from the future are as good as others, damage is still seen."""
    bench.reset()
    ahead = time.time() + 10 * 86400
    for path in (*bench.root.rglob("*"), *bench.folder.glob("*.jsonl")):
        os.utime(path, (ahead, ahead))
    assert all(state == "up to date" for state, _ in bench.states().values()), bench.states()
    done = bench.phicli("run")
    assert done.code == 0 and done.err.count("is up to date") == 4, done.err
    flip(bench.root / "awq" / "model.safetensors")
    assert bench.states()["quantize"][0] == "broken"
    bench.check_recovered()
    return 2
