"""Faults of the process: killed, interrupted, two at once, four at once."""

import random
import shutil
import signal
import time

from bench import STEPS, TARGETS, Bench, leftovers, until


def killed(bench: Bench, tries: int) -> int:
    """kill -9 at random moments, in turn of a first run and of one that makes all again: what was there is whole, and
    the next run ends with the hashes of an uninterrupted one."""
    chance = random.Random(0)
    for i in range(tries):
        again = i % 2 == 1
        bench.reset("evaluate" if again else None)
        running = bench.start("run", *(["--force"] if again else []))
        moment = chance.uniform(0, bench.seconds)
        time.sleep(moment)
        running.send(signal.SIGKILL)
        assert running.wait().code in (-signal.SIGKILL, 0)
        states = bench.states()
        assert all(state in ("up to date", "not made", "stale") for state, _ in states.values()), states
        if again:  # what was there is there, old or new
            assert all(state == "up to date" for state, _ in states.values()), states
        bench.check_recovered(always=True)
    return tries


def interrupted(bench: Bench, tries: int) -> int:
    """Ctrl-C in the middle of every step: exit code 130, nothing half-written, what was there stays."""
    for step in STEPS:
        for force in (False, True):
            bench.reset(STEPS[STEPS.index(step) - 1] if step != "quantize" else None)
            if force:
                bench.reset(step)
            running = bench.start(step, *(["--force"] if force else []))
            until(lambda step=step: working(bench, step))
            running.send(signal.SIGINT)
            done = running.wait()
            assert done.code == 130 and not done.out and "Traceback" not in done.err, (step, done)
            left = leftovers(bench.root)
            assert left == [] and (bench.root / TARGETS[step]).exists() == force, (step, left)
            assert not force or bench.states()[step][0] == "up to date"
            bench.check_recovered()
    bench.reset()
    running = bench.start("chat", "--adapter", "travel", "--prompt", "Where to?", "--max-new-tokens", "1900",
                          PHICLI_CHAT_TEMPERATURE="1")
    until(lambda: running.out() != "")
    running.send(signal.SIGINT)
    assert running.wait().code == 130
    return 2 * len(STEPS) + 1


def working(bench: Bench, step: str) -> bool:
    """Whether a step is in the middle of its work."""
    target = bench.root / TARGETS[step]
    if step == "evaluate":
        lock = target.with_name(f".{target.name}.lock")
        return lock.is_file() and lock.stat().st_size > 0  # written once it is held
    return any(target.parent.glob(f".{target.name}.new-*"))


def two_at_once(bench: Bench, tries: int) -> int:
    """Two runs on one root: the second says who holds a stage and waits; it takes over if the first is killed."""
    for kill in (False, True):
        bench.reset(None)
        first = bench.start("run")
        until(lambda: working(bench, "quantize"))
        second = bench.start("run")
        until(lambda second=second: "waiting for" in second.err())
        assert f"process {first.pid} (phicli run, since " in second.err()
        if kill:
            first.send(signal.SIGKILL)
        assert first.wait().code == (-signal.SIGKILL if kill else 0)
        done = second.wait()
        assert done.code == 0, done.err
        assert bench.differences() == [] and leftovers(bench.root) == []
    return 2


def interrupted_while_waiting(bench: Bench, tries: int) -> int:
    """Ctrl-C in the process that waits: 130, and the other goes on."""
    bench.reset(None)
    first = bench.start("quantize")
    until(lambda: working(bench, "quantize"))
    second = bench.start("quantize")
    until(lambda: "waiting for" in second.err())
    second.send(signal.SIGINT)
    assert second.wait().code == 130
    assert first.wait().code == 0
    bench.check_recovered()
    return 1


def four_chats(bench: Bench, tries: int) -> int:
    """Four `phicli chat --prompt` at once: each gives the answer that one alone gives."""
    bench.reset()
    question = ("chat", "--adapter", "travel", "--prompt", "Where to?")
    alone = bench.phicli(*question)
    together = [process.wait() for process in [bench.start(*question) for _ in range(4)]]
    assert alone.code == 0 and alone.out and [d.out for d in together] == [alone.out] * 4, together
    return 4


def removed(bench: Bench, tries: int) -> int:
    """A stage's folder removed by hand: it and what comes after it is made again."""
    for step in STEPS:
        bench.reset()
        target = bench.root / TARGETS[step]
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        assert bench.states()[step][0] == "not made"
        bench.check_recovered()
    return len(STEPS)
