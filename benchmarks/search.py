"""In how many trials `phicli search` finds the best of a grid of twelve, whatever it begins with.

    python benchmarks/search.py                              # the built-in model, about a minute on two cores
    python benchmarks/search.py --model FOLDER --rows 60     # another one

The twelve are measured once; then searches that begin with each order of the values get these figures. A table, or
--json.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

from phicli.config import EvaluateConfig, FinetuneConfig, OptimizeConfig, QuantizeConfig
from phicli.config.measuring import SearchConfig
from phicli.steps.choosing import Limits, best_of, next_settings
from phicli.steps.search import named, search
from phicli.steps.trials import Steps

AXES = {"algorithm": ("awq", "rtn", "kquant"), "group_size": (128, 32), "head": ("int8", "int4")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="phicli-search-") as root:
        trials = measure(args, Path(root))
    sizes = sorted(trial["size"] for trial in trials)
    limits = {"none": Limits(), **{f"{sizes[at] / 1e6:.3g} MB": Limits(size=sizes[at]) for at in (3, 6)}}
    found = {name: [trials_needed(trials, limit, orders) for orders in begun()] for name, limit in limits.items()}
    if args.json:
        print(json.dumps({"trials": trials, "needed": found}))
        return
    for trial in trials:
        print(f"{named(trial['settings']):45} {trial['size'] / 1e6:8.3f} MB  KL {trial['kl']:.4f}  "
              f"{trial['speed']:.0f} tokens/s")
    for name, needed in found.items():
        print(f"limit {name}: the lowest KL found after {min(needed)} to {max(needed)} of 12 trials, "
              f"in {len(needed)} orders")


def measure(args: argparse.Namespace, root: Path) -> list[dict]:
    """All of the grid."""
    common = {"model": args.model, "root": str(root)}
    steps = Steps(QuantizeConfig(**common, samples=args.samples), FinetuneConfig(**common), OptimizeConfig(**common),
                  EvaluateConfig(**common, rows=args.rows))
    axes = {name: tuple(map(str, values)) for name, values in AXES.items()}
    return search(SearchConfig(**common, **axes), steps)["trials"]


def begun() -> list[dict]:
    """The axes with their values in every order."""
    orders = itertools.product(*(itertools.permutations(values) for values in AXES.values()))
    return [dict(zip(AXES, order, strict=True)) for order in orders]


def trials_needed(trials: list[dict], limits: Limits, axes: dict) -> int:
    best, done = trials[best_of(trials, limits, "kl")], []
    while best not in done:
        settings = next_settings(axes, done, limits, "kl", seed=0)
        done.append(next(trial for trial in trials if trial["settings"] == settings))
    return len(done)


if __name__ == "__main__":
    main()
