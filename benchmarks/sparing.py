"""What training on less memory costs: rows that go through at once, and what of each layer is computed twice.

    python benchmarks/sparing.py                                 # 3.8 B in Phi-4-mini's shape, random integers, a GPU
    python benchmarks/sparing.py --packed                        # with the integers alone, as where memory is short
    python benchmarks/sparing.py --layers 2 --device cpu         # that it runs

One process, one model, the steps of `phicli finetune` with its defaults (CUDA graphs on a GPU). Of each way two steps
warm up and capture, four are measured, all of the same rows. Peak: what tensors take at most; taken: what torch took
from the GPU for them. The last column is the speed beside that of the first line, which is of the model as
transformers and peft compute it; all others are of our functions in their place (`phicli.training.fused`), on a GPU.
What `Trainer` does where memory runs out follows from this table.
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from synthetic import PHI4, random_awq_checkpoint

from phicli import finetune
from phicli.checkpoints import loading
from phicli.training import passes, training
from phicli.training.batches import batches
from phicli.training.determinism import repeatable
from phicli.training.fused import fuse
from phicli.training.loss import RowLoss
from phicli.training.recompute import LAYER, MLP, NOTHING
from phicli.training.training import Trainer

ROWS = Path(__file__).parent.parent / "data" / "data_sample_travel.jsonl"
WORDS = {NOTHING: "nothing", MLP: "the MLPs", LAYER: "the layers"}
WARM, TIMED = 2, 4


class Ways(Trainer):
    """Measures in place of training."""

    parts = (8, 4, 2, 1)

    def run(self) -> dict[str, Any]:
        self.ranks.begin(self.parameters)
        batch = next(batches(self.rows, self.recipe.batch_size, 0, 0, 1)).rows
        tokens = sum(len(row.ids) for row in batch)
        print(f"{len(batch)} rows, {tokens} tokens")
        print(f"{'rows':>4}  {'twice':16}{'peak':>9}{'taken':>9}{'tokens/s':>11}", flush=True)
        self.model.train()
        with repeatable(self.cuda):
            first = self._show("nothing, theirs", batch, NOTHING, self.parts[0], tokens)
            fused = fuse(self.model) if self.cuda else None
            if fused:
                self.loss = self.gradients.loss = RowLoss(self.model.get_base_model(), fused=True)
            with fused.running() if fused else contextlib.nullcontext():
                for level in WORDS:
                    for rows in self.parts:
                        self._show(WORDS[level], batch, level, rows, tokens, first)
        raise SystemExit

    def _show(self, name: str, batch: list[Any], level: int, rows: int, tokens: int, first: float = 0.0) -> float:
        """Prints a line; gives tokens/s."""
        speed = tokens / self._seconds(batch, level, rows)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0
        taken = torch.cuda.max_memory_reserved() / 1e9 if self.cuda else 0.0
        print(f"{rows:4}  {name:16}{peak:6.2f} GB{taken:6.2f} GB{speed:11,.0f}{speed / (first or speed):7.2f}",
              flush=True)
        return speed

    def _seconds(self, batch: list[Any], level: int, rows: int) -> float:
        """Of a step."""
        self.gradients.forget()
        self._recompute(level)
        self.state.micro_batch = rows
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        begun = 0.0
        for step in range(WARM + TIMED):
            if step == WARM:
                self._wait()
                begun = time.perf_counter()
            self._gradients(batch)
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)
        self._wait()
        return (time.perf_counter() - begun) / TIMED

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--packed", action="store_true", help="weights are not kept in bfloat16 beside the integers")
    parser.add_argument("--rows", type=lambda text: tuple(map(int, text.split(","))), default=Ways.parts)
    args = parser.parse_args()
    Ways.parts = args.rows
    if args.packed:
        loading.keeps_unpacked = lambda *_: False
    passes.Trainer = Ways  # type: ignore[misc]
    training.fuse = lambda model: None  # type: ignore[assignment]  # until the first line is measured
    with tempfile.TemporaryDirectory(prefix="phicli-sparing-") as scratch:
        base = random_awq_checkpoint(Path(scratch) / "awq", args.layers, seed=0, shape=PHI4)
        finetune(base=str(base), root=str(Path(scratch) / "root"), data=[str(ROWS)], eval_split=0, device=args.device)


if __name__ == "__main__":
    main()
