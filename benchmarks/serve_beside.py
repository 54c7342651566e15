"""`phicli serve` and llama-server beside each other: the same model and adapters on the same cores, in turns.

    taskset -c 0,1 python benchmarks/serve_beside.py --path models/phi/onnx-ao \
        --llama-server llama.cpp/build/bin/llama-server --gguf q4_0.gguf --lora travel.gguf --lora second.gguf

Both servers stay up, and each case is asked of one after the other, --rounds times; ratios are of neighbours. Clients
ask one completion after another of --input-len random tokens and --output-len to come. Cases: no adapter; one, the same
in all requests; all adapters there are and none, at random. llama-server keeps no prompts, which cases share.
The GGUF is the model by llama.cpp's convert_hf_to_gguf.py and llama-quantize, an adapter is one by its
convert_lora_to_gguf.py; for each there has to be one in the ONNX folder.

tok/s: tokens of answers a second, prompts included in the time. TTFT, ITL: medians in ms. CPU: seconds of the processor
for 1,000 tokens of answers, which other programs disturb less.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from http_client import Exchange, ask, server
from serve_load import Measured, figures, one

SECONDS_TO_START = 120


@dataclass
class Contender:
    """A server: where it is, its process, and what a request for each adapter (None first) has besides."""

    name: str
    place: tuple[str, int]
    pid: int
    adapters: list[dict[str, Any]]

    def cpu_seconds(self) -> float:
        return sum(psutil.Process(self.pid).cpu_times()[:2])


@contextlib.contextmanager
def llama_server(args: argparse.Namespace) -> Iterator[Contender]:
    """llama-server with all adapters loaded, none of which is applied unasked."""
    most = max(args.clients)
    context = most * (args.input_len + args.output_len + 64)
    command = [args.llama_server, "--model", args.gguf, "--port", str(args.port), "--threads", str(args.threads),
               "--threads-batch", str(args.threads), "--parallel", str(most), "--ctx-size", str(context), "--no-ui"]
    if args.lora:
        command += ["--lora", ",".join(args.lora), "--lora-init-without-apply"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    place = "127.0.0.1", args.port
    try:
        asyncio.run(_until_ready(place, started))
        scales: list[list[int]] = [[], *([n] for n in range(len(args.lora)))]
        yield Contender("llama-server", place, started.pid,
                        [{"lora": [{"id": n, "scale": 1.0} for n in on], "cache_prompt": False}
                         for on in scales])
    finally:
        started.terminate()
        started.wait(60)


async def _until_ready(place: tuple[str, int], started: subprocess.Popen) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until and started.poll() is None:
        with contextlib.suppress(OSError, RuntimeError):
            async with Exchange(place) as exchange:
                await exchange.send("/health", b"")
                if await exchange.status() == 200:
                    return
        await asyncio.sleep(0.2)
    raise SystemExit("llama-server does not start")


async def turn(contender: Contender, clients: int, adapters: Sequence[int], words: Sequence[int],
               args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One case on one server."""
    chance, room = random.Random(seed), asyncio.Semaphore(clients)
    bodies = [{**contender.adapters[chance.choice(adapters)], "prompt": chance.choices(words, k=args.input_len),
               "max_tokens": args.output_len, "temperature": 0, "ignore_eos": True, "stream": True,
               "stream_options": {"include_usage": True}} for _ in range(max(2, args.requests * clients))]

    async def limited(body: dict[str, Any]) -> Measured:
        async with room:
            return await one(contender.place, body)

    used, begun = contender.cpu_seconds(), time.perf_counter()
    found = figures(await asyncio.gather(*map(limited, bodies)), time.perf_counter() - begun,
                    argparse.Namespace(**vars(args), rate=float("inf"), concurrency=clients))
    if found["failed"]:
        raise SystemExit(f"{contender.name}: {found['faults']}")
    return {"tokens_per_second": found["output_throughput"], "ttft_ms": found["median_ttft_ms"],
            "itl_ms": found["median_itl_ms"],
            "cpu_seconds": 1000 * (contender.cpu_seconds() - used) / found["total_output_tokens"]}


def measure(contenders: Sequence[Contender], args: argparse.Namespace) -> list[dict[str, Any]]:
    words = asyncio.run(ask(contenders[0].place, "/tokenize",
                            {"prompt": " the harbour lies below an old town and boats leave at nine"}))["tokens"]
    every = range(len(contenders[0].adapters))
    cases = {"none": [0]} | ({"one": [1], f"{len(every) - 1} and none": [*every]} if len(every) > 1 else {})
    found = []
    for clients in args.clients:
        for case, adapters in cases.items():
            for contender in contenders:
                asyncio.run(turn(contender, clients, adapters, words, args, -1))  # what is made once is made
            rounds = [[asyncio.run(turn(contender, clients, adapters, words, args, number)) for contender in contenders]
                      for number in range(args.rounds)]
            for own in zip(*rounds, strict=True):
                middle = {name: statistics.median(one[name] for one in own) for name in own[0]}
                name = contenders[len(found) % len(contenders)].name
                found.append({"clients": clients, "adapters": case, "server": name, **middle})
                print(f"{clients:2} clients, {case:12} {name:13} {middle['tokens_per_second']:8.1f} tok/s, TTFT "
                      f"{middle['ttft_ms']:7.1f}, ITL {middle['itl_ms']:6.1f}, CPU {middle['cpu_seconds']:6.2f}")
            ratios = [ours["tokens_per_second"] / other["tokens_per_second"] for ours, other in rounds]
            print(f"   phicli / llama-server {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                  flush=True)
            found[-2]["ratio"] = statistics.median(ratios)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="folder of an ONNX model")
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--lora", action="append", default=[], metavar="GGUF")
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8])
    parser.add_argument("--requests", type=int, default=3, help="of each client, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of llama-server")
    parser.add_argument("--port", type=int, default=18080, help="of llama-server")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    own = argparse.Namespace(url=None, path=args.path, device="cpu", max_batch=max(args.clients), serve="")
    with server(own) as (place, pid), llama_server(args) as other:
        assert pid
        names = [model["id"] for model in asyncio.run(ask(place, "/v1/models"))["data"]][: 1 + len(args.lora)]
        if len(names) != len(other.adapters):
            raise SystemExit(f"{args.path} has {len(names) - 1} adapters, --lora names {len(args.lora)}")
        found = measure([Contender("phicli serve", place, pid, [{"model": name} for name in names]), other], args)
    if args.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
