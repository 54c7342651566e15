"""Many requests to a server, most of them rude: nothing is lost, memory stays flat, and it gets no slower.

    python benchmarks/serve_soak.py --path models/tiny/onnx-ao                    # 10,000 requests
    python benchmarks/serve_soak.py --url http://127.0.0.1:8000 --requests 500
    python benchmarks/serve_soak.py --path … --device cuda --serve '--fixed-batch --no-prefix-cache'

Clients, chosen at random: some want a whole answer or a stream and check it against what the server said before they
all began; others leave in the middle, send half a body or a broken one, read slowly, or vanish.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import psutil
from http_client import SECONDS, Exchange, add_options, ask, server

CHAT = "/v1/chat/completions"
KINDS = {"whole": 30, "stream": 25, "leaves": 15, "vanishes": 10, "broken": 10, "half": 5, "slow": 5}
QUESTIONS = ("What is the capital of France?", "Where should I go in spring?", "Name a colour.", "Count to five.")
BROKEN = (b"", b"{", b"[]", b'{"messages": 1}', b'{"a": 1, "a": 2}', b"\xff" * 50, b"[" * 5000)
LONG = 400  # tokens that those who leave ask for


class Soak:
    def __init__(self, place: tuple[str, int], models: list[str], seed: int):
        self.place, self.models, self.random = place, models, random.Random(seed)
        self.wanted: dict[tuple[str, str], str] = {}
        self.faults: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.seconds: list[float] = []

    def body(self, model: str, question: str, **more: Any) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0,
                "max_tokens": 12, **more}

    async def prepare(self) -> None:
        for model in self.models:
            for question in QUESTIONS:
                found = await ask(self.place, CHAT, self.body(model, question))
                self.wanted[model, question] = found["choices"][0]["message"]["content"]

    async def one(self) -> None:
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(SECONDS), Exchange(self.place) as exchange:
                await getattr(self, kind)(exchange)
        except Exception as e:
            self.faults[f"{kind}: {type(e).__name__} {e}"[:200]] += 1
        self.done[kind] += 1
        if kind == "whole":
            self.seconds.append(time.perf_counter() - begun)

    async def whole(self, exchange: Exchange) -> None:
        model, question = self._choice()
        await exchange.send(CHAT, self.body(model, question))
        assert await exchange.status() == 200
        self.check(model, question, (await exchange.document())["choices"][0]["message"]["content"])

    async def stream(self, exchange: Exchange, pause: float = 0) -> None:
        model, question = self._choice()
        await exchange.send(CHAT, self.body(model, question, stream=True))
        assert await exchange.status() == 200
        text = ""
        async for event in exchange.events():
            text += event["choices"][0]["delta"].get("content") or ""
            await asyncio.sleep(pause)
        self.check(model, question, text)

    async def slow(self, exchange: Exchange) -> None:
        await self.stream(exchange, 0.05)

    async def leaves(self, exchange: Exchange) -> None:
        await exchange.send(CHAT, self.body(*self._choice(), stream=True, max_tokens=LONG, ignore_eos=True))
        assert await exchange.status() == 200
        events = exchange.events()
        for _ in range(self.random.randrange(1, 6)):
            await anext(events)
        await events.aclose()  # type: ignore[attr-defined]

    async def vanishes(self, exchange: Exchange) -> None:
        more = {"stream": self.random.random() < 0.5, "max_tokens": LONG, "ignore_eos": True}
        await exchange.send(CHAT, self.body(*self._choice(), **more))
        await asyncio.sleep(self.random.random() * 0.05)
        exchange.reset()

    async def broken(self, exchange: Exchange) -> None:
        await exchange.send(CHAT, self.random.choice(BROKEN[1:]))
        assert await exchange.status() == 400

    async def half(self, exchange: Exchange) -> None:
        await exchange.send(CHAT, self.body(*self._choice()), cut=self.random.randrange(20))
        exchange.reset()

    def check(self, model: str, question: str, text: str) -> None:
        assert text == self.wanted[model, question], f"{text!r}, not {self.wanted[model, question]!r}"

    def _choice(self) -> tuple[str, str]:
        return self.random.choice(self.models), self.random.choice(QUESTIONS)


async def run(place: tuple[str, int], pid: int | None, requests: int, clients: int, seed: int) -> dict[str, Any]:
    models = [model["id"] for model in (await ask(place, "/v1/models"))["data"]]
    soak = Soak(place, models, seed)
    await soak.prepare()
    left, memory, used = requests, list[int](), list[float]()
    process = psutil.Process(pid) if pid else None

    async def client() -> None:
        nonlocal left
        while left:
            left -= 1
            if process and left % max(1, requests // 20) == 0:
                memory.append(process.memory_info().rss)
                used.append(sum(process.cpu_times()[:2]))
            await soak.one()

    await asyncio.gather(*(client() for _ in range(clients)))
    health = await ask(place, "/health")
    until = time.monotonic() + 20
    while (health["running"] or health["waiting"]) and time.monotonic() < until:  # of those who vanished
        await asyncio.sleep(0.05)
        health = await ask(place, "/health")
    part = min(1000, len(soak.seconds) // 3)
    return {"requests": requests, "kinds": dict(soak.done), "faults": dict(soak.faults), "left": health["running"],
            "first_seconds": statistics.median(soak.seconds[:part]),
            "last_seconds": statistics.median(soak.seconds[-part:]), "memory": memory,
            "cpu_seconds": [later - before for before, later in pairwise(used)]}


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
