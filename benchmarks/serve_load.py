"""How a server fares under load: requests that arrive at random (Poisson), measured as `vllm bench serve` does.

    python benchmarks/serve_load.py --path models/tiny/onnx-ao --rate 4 --requests 200
    python benchmarks/serve_load.py --url http://127.0.0.1:8000 --rate inf --concurrency 32 --requests 256 --json

Prompts are random tokens of a fixed number, answers have a fixed number of tokens; each request asks one of the
server's models, or of --models, at random. The load itself takes a part of a core.

TTFT: until the first token. TPOT: mean time of a token after the first, of each request. ITL: between pieces of the
stream. E2EL: until the last token. All in milliseconds.
"""

import argparse
import asyncio
import json
import math
import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from http_client import SECONDS, Exchange, add_options, ask, server

COMPLETIONS = "/v1/completions"


@dataclass
class Measured:
    """One request's times, in seconds of one clock."""

    begun: float
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0
    fault: str = ""


async def one(place: tuple[str, int], body: dict[str, Any]) -> Measured:
    found = Measured(time.perf_counter())
    try:
        async with asyncio.timeout(SECONDS), Exchange(place) as exchange:
            await exchange.send(COMPLETIONS, body)
            if (status := await exchange.status()) != 200:
                found.fault = str(status)
                return found
            async for event in exchange.events():
                if event.get("usage"):
                    found.tokens = event["usage"]["completion_tokens"]
                elif event["choices"][0]["text"]:
                    found.pieces.append(time.perf_counter())
    except Exception as e:
        found.fault = type(e).__name__
    return found


async def run(place: tuple[str, int], args: argparse.Namespace) -> dict[str, Any]:
    known = [model["id"] for model in (await ask(place, "/v1/models"))["data"]]
    models, chance = args.models.split(",") if args.models else known, random.Random(args.seed)
    words = (await ask(place, "/tokenize", {"prompt": " the harbour lies below an old town and boats leave at nine"}))
    room = asyncio.Semaphore(args.concurrency)

    def body(tokens: int) -> dict[str, Any]:
        return {"model": chance.choice(models), "prompt": chance.choices(words["tokens"], k=args.input_len),
                "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}

    async def limited(asked: dict[str, Any]) -> Measured:
        async with room:
            return await one(place, asked)

    await asyncio.gather(*(limited(body(2)) for _ in range(min(4, args.concurrency))))  # what is made once is made
    tasks, begun = [], time.perf_counter()
    for _ in range(args.requests):
        tasks.append(asyncio.create_task(limited(body(args.output_len))))
        await asyncio.sleep(0 if math.isinf(args.rate) else chance.expovariate(args.rate))
    found = await asyncio.gather(*tasks)
    return figures(found, time.perf_counter() - begun, args)


def figures(found: list[Measured], seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """As `vllm bench serve` names them."""
    done = [one for one in found if not one.fault and one.pieces]
    times = {"ttft": [one.pieces[0] - one.begun for one in done],
             "tpot": [(one.pieces[-1] - one.pieces[0]) / (one.tokens - 1) for one in done if one.tokens > 1],
             "itl": [gap for one in done for gap in np.diff(one.pieces)],
             "e2el": [one.pieces[-1] - one.begun for one in done]}
    tokens = sum(one.tokens for one in done)
    result: dict[str, Any] = {
        "completed": len(done), "failed": len(found) - len(done), "faults": sorted({one.fault for one in found} - {""}),
        "request_rate": args.rate, "max_concurrency": args.concurrency, "duration": seconds,
        "total_input_tokens": len(done) * args.input_len, "total_output_tokens": tokens,
        "request_throughput": len(done) / seconds, "output_throughput": tokens / seconds,
        "total_token_throughput": (tokens + len(done) * args.input_len) / seconds}
    for name, values in times.items():
        for what, value in (("mean", np.mean), ("median", np.median), ("p95", _quantile(95)), ("p99", _quantile(99))):
            result[f"{what}_{name}_ms"] = 1000 * float(value(values)) if values else None
    return result


def _quantile(percent: float) -> Any:
    return lambda values: np.percentile(values, percent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--models", help="names with commas between them")
    parser.add_argument("--rate", type=float, default=math.inf, help="requests a second; inf: as many at once as may")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.requests, args.concurrency = min(args.requests, 20_000), min(args.concurrency, 512)
    with server(args) as (place, _):
        found = asyncio.run(run(place, args))
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:24}{value:12.2f}" if isinstance(value, float) else f"{name:24}{value!s:>12}")


if __name__ == "__main__":
    main()
