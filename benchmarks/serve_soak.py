"""Many requests to a server, most of them rude: nothing is lost, memory stays flat, and it gets no slower.

    python benchmarks/serve_soak.py --path models/tiny/onnx-ao                    # 10,000 requests
    python benchmarks/serve_soak.py --url http://127.0.0.1:8000 --requests 500
    python benchmarks/serve_soak.py --path … --device cuda --serve '--fixed-batch --no-prefix-cache'

Clients, chosen at random: some want a whole answer or a stream and check it against what the server said before they
all began; others leave in the middle, send half a body or a broken one, read slowly, or vanish. Each thousand requests
are the same thousand, so the first and the last can be compared: by the clock, and by the server's processor time.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import psutil
from http_client import SECONDS, Exchange, add_options, ask, server

CHAT = "/v1/chat/completions"
KINDS = {"whole": 30, "stream": 25, "leaves": 15, "vanishes": 10, "broken": 10, "half": 5, "slow": 5}
QUESTIONS = ("What is the capital of France?", "Where should I go in spring?", "Name a colour.", "Count to five.")
BROKEN = (b"", b"{", b"[]", b'{"messages": 1}', b'{"a": 1, "a": 2}', b"\xff" * 50, b"[" * 5000)
LONG = 400  # tokens that those who leave ask for
PART = 1000  # requests that are compared


class Soak:
    def __init__(self, place: tuple[str, int], models: list[str]):
        self.place, self.models = place, models
        self.wanted: dict[tuple[str, str], str] = {}
        self.faults: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def body(self, model: str, question: str, **more: Any) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0,
                "max_tokens": 12, **more}

    async def prepare(self) -> None:
        for model in self.models:
            for question in QUESTIONS:
                found = await ask(self.place, CHAT, self.body(model, question))
                self.wanted[model, question] = found["choices"][0]["message"]["content"]

    async def one(self, chance: random.Random) -> None:
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        try:
            async with asyncio.timeout(SECONDS), Exchange(self.place) as exchange:
                await getattr(self, kind)(exchange, chance)
        except Exception as e:
            self.faults[f"{kind}: {type(e).__name__} {e}"[:200]] += 1
        self.done[kind] += 1

    async def whole(self, exchange: Exchange, chance: random.Random) -> None:
        model, question = self._choice(chance)
        await exchange.send(CHAT, self.body(model, question))
        assert await exchange.status() == 200
        self.check(model, question, (await exchange.document())["choices"][0]["message"]["content"])

    async def stream(self, exchange: Exchange, chance: random.Random, pause: float = 0) -> None:
        model, question = self._choice(chance)
        await exchange.send(CHAT, self.body(model, question, stream=True))
        assert await exchange.status() == 200
        text = ""
        async for event in exchange.events():
            text += event["choices"][0]["delta"].get("content") or ""
            await asyncio.sleep(pause)
        self.check(model, question, text)

    async def slow(self, exchange: Exchange, chance: random.Random) -> None:
        await self.stream(exchange, chance, 0.05)

    async def leaves(self, exchange: Exchange, chance: random.Random) -> None:
        await exchange.send(CHAT, self.body(*self._choice(chance), stream=True, max_tokens=LONG, ignore_eos=True))
        assert await exchange.status() == 200
        events = exchange.events()
        for _ in range(chance.randrange(1, 6)):
            await anext(events)
        await events.aclose()  # type: ignore[attr-defined]

    async def vanishes(self, exchange: Exchange, chance: random.Random) -> None:
        more = {"stream": chance.random() < 0.5, "max_tokens": LONG, "ignore_eos": True}
        await exchange.send(CHAT, self.body(*self._choice(chance), **more))
        await asyncio.sleep(chance.random() * 0.05)
        exchange.reset()

    async def broken(self, exchange: Exchange, chance: random.Random) -> None:
        await exchange.send(CHAT, chance.choice(BROKEN[1:]))
        assert await exchange.status() == 400

    async def half(self, exchange: Exchange, chance: random.Random) -> None:
        await exchange.send(CHAT, self.body(*self._choice(chance)), cut=chance.randrange(20))
        exchange.reset()

    def check(self, model: str, question: str, text: str) -> None:
        assert text == self.wanted[model, question], f"{text!r}, not {self.wanted[model, question]!r}"

    def _choice(self, chance: random.Random) -> tuple[str, str]:
        return chance.choice(self.models), chance.choice(QUESTIONS)


async def run(place: tuple[str, int], pid: int | None, requests: int, clients: int, seed: int) -> dict[str, Any]:
    models = [model["id"] for model in (await ask(place, "/v1/models"))["data"]]
    soak, process = Soak(place, models), psutil.Process(pid) if pid else None
    await soak.prepare()
    clients = max(1, min(clients, requests // 4))
    part, begun = min(PART, max(1, requests // 2 - clients)), 0
    first, last = clients, requests - clients - part  # while all clients are busy
    memory, marks = list[int](), dict[int, tuple[float, float]]()

    async def client() -> None:
        nonlocal begun
        while begun < requests:
            number, begun = begun, begun + 1
            if number in (first, first + part, last, last + part):
                marks[number] = time.perf_counter(), _used(process)
            if process and number % max(1, requests // 20) == 0:
                memory.append(process.memory_info().rss)
            await soak.one(random.Random(seed * requests + number % part))

    await asyncio.gather(*(client() for _ in range(clients)))
    health = await ask(place, "/health")
    until = time.monotonic() + 20
    while (health["running"] or health["waiting"]) and time.monotonic() < until:  # of those who vanished
        await asyncio.sleep(0.05)
        health = await ask(place, "/health")
    ((first_seconds, first_cpu), (last_seconds, last_cpu)) = (
        [after - before for before, after in zip(marks[at], marks[at + part], strict=True)] for at in (first, last))
    return {"requests": requests, "kinds": dict(soak.done), "faults": dict(soak.faults), "left": health["running"],
            "compared": part, "first_seconds": first_seconds, "last_seconds": last_seconds,
            "first_cpu_seconds": first_cpu, "last_cpu_seconds": last_cpu, "last_to_first": last_seconds / first_seconds,
            "cpu_last_to_first": last_cpu / first_cpu if first_cpu else None, "memory": memory}


def _used(process: psutil.Process | None) -> float:
    """Seconds of the processor."""
    return sum(process.cpu_times()[:2]) if process else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--pid", type=int, help="of a server that runs: its memory is followed")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with server(args) as (place, started):
        found = asyncio.run(run(place, started or args.pid, min(args.requests, 100_000), min(args.clients, 256),
                                args.seed))
    print(json.dumps(found, indent=2))
    if found["faults"] or found["left"]:
        raise SystemExit("something was lost")


if __name__ == "__main__":
    main()
