"""Prompt-lookup speculation: requests that repeat their prompt, and others, with guesses and without, in turns.

    python benchmarks/speculation.py models/phi/onnx-ao                    # where it was built for
    python benchmarks/speculation.py models/phi/onnx-ao --device cuda --rounds 5
    python benchmarks/speculation.py models/phi/onnx-ao --temperature 0.7 --rows 4

One engine with `speculate` and one with "off" answer the same request, which goes first changes from round to round. A
ratio is of tokens a second after the first one, of neighbours; shown is the median, and the least and the most. For
--rows over 1 so many copies of a request run at once, with seeds of their own. The first round of all warms up.
"""

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from phicli import Sampling
from phicli.inference.engine import Engine, Finish, Piece, Request

ARTICLE = (
    "The harbour town of Vell lies where the river Aune meets the grey northern sea. Its market opens at six in the "
    "morning, and by seven the fishermen have sold most of their catch. Visitors who arrive by train cross the old "
    "iron bridge, built in 1887, and walk down Mill Street to the square. There the town hall, the library and the "
    "small museum of ships stand side by side. The museum keeps the log books of forty whaling ships, and a model of "
    "the Margarete, which was lost in the storm of 1911. In summer a ferry leaves for the islands every two hours; in "
    "winter only twice a day. The islands have no cars, two inns and a lighthouse that can be climbed on Sundays.")
CODE = '''class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        return self.balance
'''
REPEATING = {
    "edit": f"Copy the following text exactly, but write Vell as Torr:\n\n{ARTICLE}",
    "quote": f"Summarise this text by quoting its three most important sentences word for word:\n\n{ARTICLE}",
    "code": f"```python\n{CODE}```\n\nWrite this class again, with a method transfer(self, other, amount) added.",
}
OTHER = {
    "story": "Write a short story about a robot who learns to paint.",
    "travel": "Where should I go in spring, and what should I see there?",
    "letter": "Write a letter to a friend about a week in the mountains.",
    "history": "What happened in the year 1789 in France?",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of an ONNX model")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--kernels", choices=("auto", "phicli", "onnxruntime"), default="auto")
    parser.add_argument("--adapter")
    parser.add_argument("--speculate", default="auto")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", help="names of requests, with commas between them")
    parser.add_argument("--json", action="store_true", help="everything as one document at the end")
    args = parser.parse_args()
    common: dict[str, Any] = {"device": args.device, "kernels": args.kernels, "max_batch": max(args.rows, 2),
                              "context": 2048, "prefix_cache": False}
    with (Engine(args.folder, speculate="off", **common) as plain,
          Engine(args.folder, speculate=args.speculate, **common) as guessing):
        if plain.why_alone:
            raise SystemExit(plain.why_alone)
        found = [measure((plain, guessing), name, text, args) for name, text in (REPEATING | OTHER).items()
                 if not args.only or name in args.only.split(",")]
    if args.json:
        print(json.dumps(found, indent=2))


def measure(engines: tuple[Engine, Engine], name: str, text: str, args: argparse.Namespace) -> dict[str, Any]:
    ids = engines[0].codec_of(args.adapter).encode_chat([{"role": "user", "content": text}])
    requests = [Request(ids, args.adapter, Sampling(args.temperature, seed=seed), args.new, ignore_eos=True,
                        repeatable=False) for seed in range(args.rows)]
    ratios, speeds, ends = [], [], list[Finish]()
    for number in range(args.rounds + 1):
        order = (0, 1) if number % 2 else (1, 0)
        of = {at: answered(engines[at], requests) for at in order}
        if number:
            ratios.append(of[1][0] / of[0][0])
            speeds.append(of[0][0])
            ends += of[1][1]
    same = sum(a == b for a, b in zip(of[0][2], of[1][2], strict=True))
    guessed, accepted = sum(end.guessed_tokens for end in ends), sum(end.accepted_tokens for end in ends)
    found = {"request": name, "repeats": name in REPEATING, "plain": statistics.median(speeds),
             "ratio": statistics.median(ratios), "ratios": ratios, "guessed": guessed, "accepted": accepted,
             "tokens": sum(end.completion_tokens for end in ends), "same_answers": same, "answers": args.rows}
    print(f"{name:8} {found['plain']:7.1f} tokens/s, with guesses {found['ratio']:.2f} ({min(ratios):.2f} to "
          f"{max(ratios):.2f}); {accepted} of {guessed} guesses right, of {found['tokens']} tokens; "
          f"{same} of {args.rows} answers the same", flush=True)
    return found


def answered(engine: Engine, requests: list[Request]) -> tuple[float, list[Finish], list[list[int]]]:
    """Tokens a second of all rows after the last one's first, their ends, and their tokens."""
    times: list[list[float]] = [[] for _ in requests]
    tokens: list[list[int]] = [[] for _ in requests]
    ends, done = list[Finish](), threading.Semaphore(0)

    def deliver(number: int, event: Piece | Finish) -> None:
        if isinstance(event, Finish):
            ends.append(event)
            done.release()
        elif event.ids:
            times[number].append(time.perf_counter())
            tokens[number] += event.ids

    for number, request in enumerate(requests):
        engine.submit(request, lambda event, number=number: deliver(number, event))
    for _ in requests:
        done.acquire()
    if failed := [str(end.error) for end in ends if end.error]:
        raise SystemExit(failed[0])
    first, last = max(own[0] for own in times), max(own[-1] for own in times)
    return sum(at > first for own in times for at in own) / (last - first), ends, tokens


if __name__ == "__main__":
    main()
