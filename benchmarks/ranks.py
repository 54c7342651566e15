"""What the embeddings and an adapter's rank cost with a real model: bytes, held-out loss, tokens/s.

    python benchmarks/ranks.py MODEL ROOT                    # 60 steps for each of four ranks
    python benchmarks/ranks.py MODEL ROOT --steps 1 --ranks 16,64     # sizes and speed only
    taskset -c 0,1 python benchmarks/ranks.py MODEL ROOT --steps 1 --ranks 64 --adapter-weights int8,float --rounds 20

MODEL: a folder or an id. Its AWQ checkpoint and the adapters are made under ROOT, and stay there for the next time.
Each variant decodes in a process of its own. They take turns, and each is compared with the model without an adapter
right before and after it: other work on a machine changes its speed within seconds.
"""

import argparse
import statistics
from contextlib import ExitStack
from pathlib import Path

from phicli import finetune, optimize, quantize
from phicli.benchmarking.turn import Case
from phicli.benchmarking.turns import Series, take_turns
from phicli.benchmarking.worker import Contender, Worker
from phicli.export.resident import BASE, DATA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("root", type=Path)
    parser.add_argument("--ranks", default="8,16,32,64")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that decodes")
    parser.add_argument("--train-device", choices=("cpu", "cuda"), help="that quantizes and trains [default: the same]")
    parser.add_argument("--adapter-weights", default="", help="of the graph, such as int8,float [default: optimize's]")
    args = parser.parse_args()
    trainer = args.train_device or args.device
    base = str(quantize(args.model, root=args.root, device=trainer).folder)
    rows: dict[str, tuple[Path, str, str]] = {}
    losses: dict[str, float] = {}
    for rank in map(int, args.ranks.split(",")):
        done = finetune(root=args.root, base=base, device=trainer, name=f"r{rank}", lora_r=rank,
                        max_steps=args.steps, publish_anyway=True)
        adapters = [f"a={done.folder}"]
        for weights in args.adapter_weights.split(","):
            name = f"rank {rank} {weights}".strip()
            losses[name] = done.manifest.quality["held_out_loss_after"]
            settings = {"adapter_weights": weights} if weights else {}
            rows[name] = built(args, base, name.replace(" ", "-"), adapters, **settings), "a", "auto"
            if args.device == "cpu":
                rows[f"{name}, onnxruntime's products"] = rows[name][0], "a", "onnxruntime"
    plain = rows[name][0]
    rows = {"no adapter": (plain, "", "auto"), "no adapter, onnxruntime's products": (plain, "", "onnxruntime"),
            "no adapter, --embeddings float": (built(args, base, "float", adapters, embeddings="float"), "", "auto"),
            **rows}
    print(f"{'':36} {'MB':>7} {'held-out loss':>14} {'tokens/s':>9} {'share, median (least, most)':>28}")
    for name, series in measured(rows, args).items():
        folder, shares = rows[name][0], series.shares()
        print(f"{name:36} {size(folder, bool(rows[name][1])):>7.1f} {losses.get(name, float('nan')):>14.3f} "
              f"{max(turn.rate for turn in series.turns):>9.1f} "
              f"{statistics.median(shares):>12.2f} ({min(shares):.2f}, {max(shares):.2f})")


def built(args: argparse.Namespace, base: str, name: str, adapters: list[str], **settings: str) -> Path:
    return optimize(root=args.root / name, base=base, device=args.device, adapters=adapters, **settings).folder


def size(folder: Path, with_adapter: bool) -> float:
    """MB of the folder, or of what its adapter adds."""
    def adapters(path: Path) -> bool:
        return path.name.startswith(DATA) or path.name == "model.onnx" or path.parent.name == "adapters"

    assert (folder / BASE).is_file()
    files = [path for path in folder.rglob("*") if path.is_file() and adapters(path) == with_adapter]
    return sum(path.stat().st_size for path in files) / 1e6


def measured(rows: dict[str, tuple[Path, str, str]], args: argparse.Namespace) -> dict[str, Series]:
    case = Case(args.prompt, args.new)
    with ExitStack() as running:
        workers = {name: running.enter_context(Worker(Contender(name, "phicli", str(folder), adapter or None,
                                                                kernels=kernels)))
                   for name, (folder, adapter, kernels) in rows.items()}
        return {name: series for name, _, series in take_turns(workers, [case], args.rounds)}


if __name__ == "__main__":
    main()
