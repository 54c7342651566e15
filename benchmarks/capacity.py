"""How many people a machine serves, and how many machines 1,000 and 1,000,000 people need.

    python benchmarks/capacity.py models/phi/onnx-ao --device cuda --rows 1,8,32

Measures how long a step of so many rows takes, adapters mixed, and a prompt's token; then simulates people: each asks
(Poisson arrivals), reads for --think seconds and asks again. Searches for the number of people at which 95 of 100
still see the first word within --first seconds and the words at --pace tokens a second. One machine is simulated;
machines behind a load balancer that knows which are free are at least as good as that many single ones.

--try RATE asks a server on the same folder so many questions a second (`serve_load.py`, --requests of them, all as long
as the mean) and prints what it said beside what the simulation says of the same load.
"""

import argparse
import json
import math
import queue
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from phicli.inference.engine import Engine, Finish, Request

PEOPLE = (1_000, 1_000_000)


@dataclass(frozen=True)
class Machine:
    """steps: rows -> seconds of a step. prompt: seconds a token. slots: rows at once. chunk: of a prompt, tokens."""

    steps: dict[int, float]
    prompt: float
    slots: int
    chunk: int = 512

    def step(self, rows: int) -> float:
        return float(np.interp(rows, list(self.steps), list(self.steps.values())))


@dataclass
class Asked:
    at: float
    prompt: int
    answer: int
    first: float = 0.0
    last: float = 0.0


def measure(folder: str, device: str, rows: list[int], prompt: int, tokens: int) -> Machine:
    """On this machine, through the engine: each row has another prompt, adapters take turns."""
    with Engine(folder, device, max_batch=max(rows), prefix_cache=False, speculate="off") as engine:
        adapters: list[str | None] = [None, *engine.adapter_names()]
        words = engine.codec_of(None).encode_text(" the harbour lies below an old town and boats leave at nine")
        chance, steps, prompts = random.Random(0), {}, (0.0, 0)
        for count in rows:
            for measured in (4, tokens):  # the first time warms up
                before, ended = engine.stats(), queue.SimpleQueue[Finish]()
                for row in range(count):
                    ids = chance.choices(words, k=prompt)
                    engine.submit(Request(ids, adapters[row % len(adapters)], max_tokens=measured, ignore_eos=True),
                                  lambda event, ended=ended: ended.put(event) if isinstance(event, Finish) else None)
                for _ in range(count):
                    ended.get()
                now = engine.stats()
            steps[count] = (now.step_seconds - before.step_seconds) / (now.steps - before.steps)
            prompts = (prompts[0] + now.prompt_seconds - before.prompt_seconds, prompts[1] + count * prompt)
            print(f"{count} rows: {1000 * steps[count]:.2f} ms a step, {count / steps[count]:.0f} tokens/s", flush=True)
    print(f"prompts: {prompts[1] / prompts[0]:.0f} tokens/s", flush=True)
    return Machine(steps, prompts[0] / prompts[1], max(rows))


def rate_of(machine: Machine, people: int, args: argparse.Namespace) -> float:
    """Questions a second that so many people ask."""
    return people / (args.think + args.answer * machine.step(min(people, machine.slots)))


def simulate(machine: Machine, rate: float, args: argparse.Namespace, alike: bool = False, seed: int = 0
             ) -> tuple[float, float]:
    """p95 of seconds to the first token, and of seconds a token after that, with so many questions a second.

    alike: whether all questions and answers are as long as the mean.
    """
    chance, done = random.Random(seed), list[Asked]()
    arrivals, at = deque[Asked](), 0.0
    while at < args.seconds:
        at += chance.expovariate(rate)
        prompt, answer = ((args.prompt, args.answer) if alike else
                          (round(chance.expovariate(1 / mean)) for mean in (args.prompt, args.answer)))
        arrivals.append(Asked(at, max(1, prompt), max(2, answer)))
    now, waiting, running = 0.0, deque[list[Any]](), list[list[Any]]()
    while arrivals or waiting or running:
        if not waiting and not running:
            now = max(now, arrivals[0].at)
        while arrivals and arrivals[0].at <= now:
            asked = arrivals.popleft()
            waiting.append([asked, asked.prompt, asked.answer])
        if waiting and len(running) < machine.slots:  # a part of the oldest prompt between two steps
            row = waiting[0]
            part = min(machine.chunk, row[1])
            now, row[1] = now + part * machine.prompt, row[1] - part
            if not row[1]:
                running.append(waiting.popleft())
                row[0].first, row[2] = now, row[2] - 1
        if running:
            now += machine.step(len(running))
            for row in running:
                row[2] -= 1
                if row[2] <= 0:
                    row[0].last = now
                    done.append(row[0])
            running = [row for row in running if row[2] > 0]
        if now > 20 * args.seconds:
            return math.inf, math.inf
    first = np.percentile([one.first - one.at for one in done], 95)
    pace = np.percentile([(one.last - one.first) / (one.answer - 1) for one in done], 95)
    return float(first), float(pace)


def capacity(machine: Machine, args: argparse.Namespace) -> int:
    """The most people with whom both limits hold; 0 if they do not with one."""
    def holds(people: int) -> bool:
        first, pace = simulate(machine, rate_of(machine, people, args), args)
        return first <= args.first and pace <= 1 / args.pace

    low, high = 0, 1
    while holds(high) and high < PEOPLE[-1]:
        low, high = high, 2 * high
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def tried(machine: Machine, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What a server takes and what the simulation says: p95 of the first token, and of a token after that, in ms."""
    import asyncio

    from http_client import server
    from serve_load import run

    asked = argparse.Namespace(url=None, path=args.folder, device=args.device, max_batch=machine.slots, serve="",
                               models="", rate=args.rate, concurrency=512, requests=args.requests, seed=0,
                               input_len=args.prompt, output_len=args.answer)
    with server(asked) as (place, _):
        found = asyncio.run(run(place, asked))
    first, pace = simulate(machine, args.rate, args, alike=True)
    return {"simulated": {"p95_ttft_ms": 1000 * first, "p95_tpot_ms": 1000 * pace},
            "measured": {name: found[name] for name in ("p95_ttft_ms", "p95_tpot_ms")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--steps", help="measured before: rows:milliseconds with commas, such as 1:4,8:5.5,32:9")
    parser.add_argument("--prompt-rate", type=float, help="with --steps: tokens of prompts a second")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", default="1,4,8")
    parser.add_argument("--prompt", type=int, default=300, help="mean tokens of a prompt that are not known already")
    parser.add_argument("--answer", type=int, default=150, help="mean tokens of an answer")
    parser.add_argument("--think", type=float, default=30, help="mean seconds from an answer to the next question")
    parser.add_argument("--first", type=float, default=2, help="seconds to the first token, for 95 of 100")
    parser.add_argument("--pace", type=float, default=8, help="tokens a second, for 95 of 100")
    parser.add_argument("--seconds", type=float, default=600, help="that are simulated")
    parser.add_argument("--try", type=float, dest="rate", help="questions a second that a server is asked")
    parser.add_argument("--requests", type=int, default=100, help="with --try")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.steps:
        steps = {int(rows): float(ms) / 1000 for rows, ms in (part.split(":") for part in args.steps.split(","))}
        machine = Machine(steps, 1 / args.prompt_rate, max(steps))
    else:
        machine = measure(args.folder, args.device, sorted(map(int, args.rows.split(","))), args.prompt, 64)
    people = capacity(machine, args)
    rate = rate_of(machine, max(people, 1), args)
    first, pace = simulate(machine, rate, args)
    found = {"steps_ms": {rows: 1000 * s for rows, s in machine.steps.items()}, "prompt_tokens_per_second":
             1 / machine.prompt, "people": people, "requests_per_second": rate, "p95_first_seconds": first,
             "p95_tokens_per_second": 1 / pace, "machines": {n: math.ceil(n / people) if people else None
                                                             for n in PEOPLE}}
    if args.rate:
        found |= tried(machine, args)
    print(json.dumps(found, indent=2) if args.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
