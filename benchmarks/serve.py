"""Many rows at once through `Engine`: what adapters cost a batch, whether answers stay the same, how newcomers fare.

    python benchmarks/serve.py models/phi/onnx-ao                        # a model with adapters, where it was built for
    python benchmarks/serve.py --device cuda --rows 1,8,32               # 3.8 B random integers, three adapters
    python benchmarks/serve.py --device cuda --rows 1,8,32 --set ep.cuda.fpa_intb_gemm=1
    python benchmarks/serve.py --device cuda --rows 8 --fixed           # the only one whose answers must be equal there
    python benchmarks/serve.py --device cuda --rows 1,8,32 --beside     # and genai's own batch, and chat, in turns

Speed: all rows are submitted at once and decode --new tokens after a prompt of --prompt; tokens a second from when the
last row has its first token until the first row is done, everything included. Batches without adapters and with all
mixed (none too) take turns, and each ratio is of neighbours. Equality: --clients submit at random moments, and each
greedy answer is compared with the one it gets alone; the one through `Session` too (--session). Newcomer: time to the
first token of a prompt while all other rows run, beside the same prompt alone.

--beside: onnxruntime-genai's Generator with as many rows (the folder's base.onnx, nothing of ours, without CUDA graphs,
as it takes no prompt of several rows with them) and, for one row, `Session`, which is what `phicli chat` runs.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts.names import GENAI_CONFIG
from phicli.benchmarking.turn import Case
from phicli.benchmarking.turn import measure as timed
from phicli.export.resident import BASE
from phicli.export.slots import MODEL
from phicli.hardware.devices import usable_cores
from phicli.inference.engine import Engine, Finish, Piece, Request
from phicli.inference.runners import GenaiRunner, Runner, SessionRunner
from phicli.inference.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of an ONNX model; without it a random one is built")
    parser.add_argument("--layers", type=int, default=32, help="of the random one")
    parser.add_argument("--rank", type=int, default=16, help="of its adapters")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--kernels", choices=("auto", "phicli", "onnxruntime"), default="auto")
    parser.add_argument("--rows", default="1,8")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32, help="0: leave equality out")
    parser.add_argument("--fixed", action="store_true", help="steps of as many rows as there can be, see Engine")
    parser.add_argument("--session", action="store_true", help="compare with Session too")
    parser.add_argument("--beside", action="store_true", help="measure genai's batch and chat too")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of onnxruntime's session")
    parser.add_argument("--json", action="store_true", help="everything as one document at the end")
    args = parser.parse_args()
    args.options = dict(entry.split("=", 1) for entry in args.set)
    with tempfile.TemporaryDirectory(prefix="phicli-serve-") as scratch:
        folder = args.folder or random_model(Path(scratch), args)
        found = measure(folder, args)
    if args.json:
        print(json.dumps(found, indent=2))


def random_model(scratch: Path, args: argparse.Namespace) -> Path:
    """Phi-3.5-mini's shape with random weights, and three random adapters on all linears."""
    from decode import random_peft
    from synthetic import random_awq_checkpoint

    from phicli import optimize

    base = random_awq_checkpoint(scratch / "awq", args.layers, seed=0)
    peft = random_peft(scratch / "peft", args.layers, args.rank)
    device = "cpu" if args.device == "auto" else args.device
    return optimize(root=scratch, base=str(base), device=device, activations="int8", head="int8",
                    adapter_layout="fused", adapters=[f"{name}={peft}" for name in ("one", "two", "three")]).folder


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    rows = [int(count) for count in args.rows.split(",")]
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack, Engine(
            folder, args.device, args.kernels, max_batch=max(*rows, 8), prefix_cache=False, fixed_batch=args.fixed,
            speculate="off", session_options=args.options) as engine:
        print(f"{folder}: open in {time.perf_counter() - begun:.1f} s, {engine.vocab_size} tokens, adapters "
              f"{', '.join(engine.adapter_names())}; {engine.why_alone or 'rows share their runs'}", flush=True)
        bench = Bench(engine, args, stack.enter_context(others(folder, args)) if args.beside else {})
        found: dict[str, Any] = {"speed": [bench.speed(count) for count in rows]}
        if args.clients:
            found["equal"] = bench.equality(folder)
        found["newcomer"] = bench.newcomer(max(rows))
    return found


@contextlib.contextmanager
def others(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Runner]]:
    """What else decodes on this folder: genai's Generator on the graph without adapters, and chat's way."""
    with tempfile.TemporaryDirectory(prefix="phicli-genai-", dir=folder.parent) as plain, \
            Session(folder, args.device, args.kernels) as session:
        for path in folder.iterdir():
            if path.is_file() and path.name not in (MODEL, GENAI_CONFIG):
                os.link(path, Path(plain) / (MODEL if path.name == BASE else path.name))
        settings = json.loads((folder / GENAI_CONFIG).read_text())
        for entry in settings["model"]["decoder"]["session_options"]["provider_options"]:
            for options in entry.values():
                options["enable_cuda_graph"] = "0"
        (Path(plain) / GENAI_CONFIG).write_text(json.dumps(settings))
        yield {"genai": GenaiRunner(Path(plain), usable_cores()), "chat": SessionRunner(session, endless=True)}


class Bench:
    def __init__(self, engine: Engine, args: argparse.Namespace, others: Mapping[str, Runner]):
        self.engine, self.args, self.others, self.random = engine, args, others, random.Random(0)

    def request(self, adapter: str | None, prompt: int, new: int) -> Request:
        top = min(4000, self.engine.vocab_size)
        return Request([self.random.randrange(10, top) for _ in range(prompt)], adapter, max_tokens=new,
                       ignore_eos=True)

    def speed(self, count: int) -> dict[str, Any]:
        """Tokens a second of `count` rows, without adapters and with all of them and none mixed."""
        names: list[str | None] = [*self.engine.adapter_names(), None]
        mixed = [names[number % len(names)] for number in range(count)]
        ways = {"base": lambda: self.decode([None] * count), "mixed": lambda: self.decode(mixed)}
        ways |= {name: functools.partial(self.rate_of, runner, count) for name, runner in self.others.items()
                 if name != "chat" or count == 1}
        for way in ways.values():
            way()
        turns = [{name: way() for name, way in ways.items()} for _ in range(self.args.rounds)]
        found: dict[str, Any] = {"rows": count, "base": statistics.median(turn["base"] for turn in turns)}
        print(f"{count:3} rows: base {found['base']:8.1f} tokens/s", end="")
        for name in list(ways)[1:]:
            ratios = [turn[name] / turn["base"] for turn in turns]
            found |= {name: statistics.median(turn[name] for turn in turns),
                      "ratio" if name == "mixed" else f"{name}_ratio": statistics.median(ratios)}
            print(f", {name} {found[name]:8.1f}, {statistics.median(ratios):.2f} of it ({min(ratios):.2f} to "
                  f"{max(ratios):.2f})", end="")
        print(flush=True)
        return found

    def rate_of(self, runner: Runner, count: int) -> float:
        return count * timed(runner, Case(self.args.prompt, self.args.new, rows=count)).rate

    def decode(self, adapters: Sequence[str | None]) -> float:
        times: list[list[float]] = [[] for _ in adapters]
        done = threading.Semaphore(0)

        def deliver(number: int, event: Piece | Finish) -> None:
            if isinstance(event, Finish):
                if event.error:
                    raise SystemExit(str(event.error))
                done.release()
            else:
                times[number].append(time.perf_counter())

        requests = [self.request(adapter, self.args.prompt, self.args.new + 2 * len(adapters)) for adapter in adapters]
        for number, request in enumerate(requests):
            self.engine.submit(request, lambda event, number=number: deliver(number, event))
        for _ in adapters:
            done.acquire()
        first, last = max(own[0] for own in times), min(own[-1] for own in times)
        return sum(first < at <= last for own in times for at in own) / (last - first)

    def tokens(self, request: Request) -> list[int]:
        return [token for event in self.engine.generate(request) if isinstance(event, Piece) for token in event.ids]

    def equality(self, folder: Path) -> dict[str, Any]:
        names = [None, *self.engine.adapter_names()]
        requests = [self.request(self.random.choice(names), self.random.randint(3, 2 * self.args.prompt),
                                 self.random.randint(8, self.args.new)) for _ in range(self.args.clients)]
        alone = [self.tokens(request) for request in requests]
        together: list[list[int]] = [[] for _ in requests]
        waits = [self.random.random() * self.args.clients / 8 for _ in requests]

        def client(number: int) -> None:
            time.sleep(waits[number])
            together[number] = self.tokens(requests[number])

        threads = [threading.Thread(target=client, args=(number,)) for number in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = {"requests": len(requests), "equal": sum(a == b for a, b in zip(alone, together, strict=True))}
        print(f"equality: {found['equal']} of {len(requests)} answers as alone", flush=True)
        if self.args.session:
            found["as_session"] = self.as_session(folder, requests, alone)
            print(f"equality: {found['as_session']} of {len(requests)} answers as through Session", flush=True)
        return found

    def as_session(self, folder: Path, requests: Sequence[Request], alone: Sequence[list[int]]) -> int:
        """How many answers are Session's, up to the token that would end them."""
        same = 0
        with Session(folder, self.args.device, self.args.kernels) as session:
            for request, mine in zip(requests, alone, strict=True):
                generator = session.generator(len(request.ids) + len(mine), request.adapter)
                generator.append_tokens(request.ids)
                drawn = [generator.next_token() for _ in mine]
                end = next((at for at, token in enumerate(drawn) if token in session.end_ids), len(drawn))
                same += drawn[:end] == mine[:end]
        return same

    def newcomer(self, count: int) -> dict[str, float]:
        """Seconds to the first token of a prompt: alone, and while all other rows decode."""
        def first(request: Request) -> float:
            begun = time.perf_counter()
            for _ in self.engine.generate(request):
                return time.perf_counter() - begun
            return 0.0

        alone = statistics.median(first(self.request(None, self.args.prompt, 4)) for _ in range(5))
        names = [None, *self.engine.adapter_names()]
        handles = [self.engine.submit(self.request(names[n % len(names)], 8, 4000), lambda event: None)
                   for n in range(count - 1)]
        while self.engine.stats().running < count - 1:
            time.sleep(0.01)
        time.sleep(0.5)
        before = self.engine.stats()
        among = [first(self.request(None, self.args.prompt, 4)) for _ in range(5)]
        after = self.engine.stats()
        for handle in handles:
            handle.cancel()
        step = (after.step_seconds - before.step_seconds) / max(1, after.steps - before.steps)
        found = {"alone": alone, "among": statistics.median(among), "worst": max(among), "step": step}
        print(f"newcomer: first token after {found['among'] * 1e3:.0f} ms (worst {found['worst'] * 1e3:.0f}) beside "
              f"{count - 1} rows, {alone * 1e3:.0f} ms alone, a step takes {step * 1e3:.1f} ms", flush=True)
        return found


if __name__ == "__main__":
    main()
