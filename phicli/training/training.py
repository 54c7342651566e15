"""The training loop: AdamW on an adapter's weights, exact to resume, sparing with memory."""

import contextlib
import math
import time
from collections.abc import Sequence
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from phicli.errors import BadInput, Missing
from phicli.hardware.interrupt import ctrl_c
from phicli.hardware.ranks import Ranks
from phicli.progress import SILENT, Progress, Task, keeping
from phicli.text import Encoded
from phicli.training.batches import batches
from phicli.training.checkpoint import Checkpoint, Weights, copy_weights, set_weights, trainable
from phicli.training.determinism import repeatable
from phicli.training.fused import fuse
from phicli.training.graphs import Gradients
from phicli.training.loss import RowLoss, count_targets, make_batch, make_even_batch
from phicli.training.recipe import Recipe
from phicli.training.recompute import WORDS, Recompute
from phicli.training.reporting import NoReporter, Reporter
from phicli.training.rows import Rows
from phicli.training.saving import Saver
from phicli.training.state import TrainingState, mean

if TYPE_CHECKING:
    from phicli.training.sharding import Shards

CLIP = 1.0  # largest norm of the gradient
BETAS = (0.9, 0.999)
BUSY = 2048  # tokens that keep a GPU busy when they go through at once


class Trainer:
    """One run.

    A step depends on weights, optimizer, seed and its number alone (dropout is seeded anew for each), so a run that
    goes on from a checkpoint ends exactly as one that was never interrupted.
    """

    def __init__(self, model: Any, rows: Rows, recipe: Recipe, checkpoint: Checkpoint | None = None,
                 progress: Progress = SILENT, reporter: Reporter | None = None, ranks: Ranks | None = None,
                 shards: "Shards | None" = None):
        """model: a PeftModel on its device, float32 adapter weights. ranks: processes that train it together. shards:
        what they hold of it, if each has a part only.
        """
        self.model, self.rows, self.recipe, self.ranks = model, rows, recipe, ranks or Ranks()
        self.checkpoint, self.progress, self.reporter = checkpoint, progress, reporter or NoReporter()
        self.cuda = model.device.type == "cuda"
        self.fused = fuse(model) if self.cuda and not shards else None
        self.loss = RowLoss(model.get_base_model(), shards.drop if shards else None, self.fused is not None)
        self.parameters = list(trainable(model).values())
        self.half = self.cuda or model.dtype == torch.bfloat16
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0, fused=self.cuda
        )
        self.gradients = Gradients(self.model, self.loss, self.parameters, self._autocast, not self.ranks.sharded)
        self.recompute = Recompute(model.get_base_model())
        self.state = TrainingState(micro_batch=recipe.batch_size)
        if shards and shards.twice:
            self._recompute(self.recompute.highest)
            progress.note(f"{WORDS[self.state.recompute]} is computed twice, to save memory")
        self.best: Weights | None = None  # where they are not the model's own
        self.saver = Saver(checkpoint if self.ranks.first else None, model, self.optimizer, recipe)
        if self.half:
            for module in model.modules():
                if hasattr(module, "cast_input_dtype_enabled"):
                    module.cast_input_dtype_enabled = False  # autocast casts; peft would to float32 and back

    def run(self) -> dict[str, Any]:
        """Train and measure; the model has the weights to keep then.

        Returns:
            figures: those of `TrainingState`, held_out_loss before and after (mean per token, the latter with the
            weights that are kept), gpu_bytes (peak of the first GPU) on CUDA, gpus if several.

        Raises:
            Missing: not enough memory even for one row. BadInput: the loss is no number.
            KeyboardInterrupt: Ctrl-C; the state is saved.
        """
        finished = False
        with repeatable(self.cuda), self.fused.running() if self.fused else contextlib.nullcontext():
            self._load()
            self.state.log = self.reporter.open(self.state.log, self.state.step)
            try:
                with keeping(self.saver.kept):
                    self._begin()
                    self._steps()
                finished = True
            finally:
                self.reporter.close(finished)
            self._keep()
            after = self.evaluate(self.rows.held_out)
        figures = self.state.figures(len(self.rows.train)) | {
            "held_out_loss_before": self.state.held_out_before, "held_out_loss_after": after}
        if not self.ranks.alone:
            figures["gpus"] = self.ranks.count
        if self.cuda:
            figures["gpu_bytes"] = torch.cuda.max_memory_allocated()
        if after is not None and not after < self.state.held_out_before:  # type: ignore[operator]
            # It may not be published, and need not be trained again when that is decided otherwise.
            self.saver.save(self.state, self.best)
        return figures

    def evaluate(self, held_out: Sequence[Encoded]) -> float | None:
        """Mean loss per token of rows, or None where there are none."""
        rows = sorted(held_out, key=lambda row: len(row.ids))
        if not rows:
            return None
        self.model.eval()
        own, total, start = self.ranks.share(rows), 0.0, 0
        while start < self._most(rows):
            part = own[start : start + self.state.micro_batch]
            with contextlib.suppress(torch.OutOfMemoryError):
                with torch.no_grad(), self._autocast():
                    loss = self.loss(make_batch(part or rows[:1]))
                total += float(loss) if part else 0.0
                start += self.state.micro_batch
                continue
            self._spare_memory(part)
        return self.ranks.add(total, self.model.device) / count_targets(rows)

    def _most(self, rows: Sequence[Encoded]) -> int:
        """How many rows this process has of these; of a model that several hold together, the most that one has: all
        use it as many times, one without rows with any.
        """
        return -(-len(rows) // self.ranks.count) if self.ranks.sharded else len(self.ranks.share(rows))

    def _load(self) -> None:
        with self.ranks.first_before(self.model.device):
            saved = self.checkpoint.load(self.model, self.optimizer) if self.checkpoint else None
        self.ranks.begin(self.parameters)
        if saved is None:
            return
        self.state, self.best = TrainingState(**saved[0]), saved[1]
        self.saver.saved = self.state.step
        if self.state.recompute:
            self._recompute(self.state.recompute)
        done = self.state.step == self.recipe.max_steps
        self.progress.note(f"all {self.state.step} steps are done already" if done else
                           f"going on from step {self.state.step}")

    def _begin(self) -> None:
        watched, all_rows = len(self.rows.held_out[: self.recipe.watched]), len(self.rows.held_out)
        if watched < all_rows:
            self.progress.note(f"held-out loss during training: of {watched} of the {all_rows} held-out rows")
        if self.state.step == 0:
            self.state.held_out_before = self.evaluate(self.rows.held_out)
            self._watch()

    def _steps(self) -> None:
        state, recipe = self.state, self.recipe
        coming = batches(self.rows, recipe.batch_size, recipe.seed, state.step, recipe.max_steps)
        with self.progress.task("finetune", total=recipe.max_steps, unit="steps") as task, ctrl_c() as stop:
            task.advance(state.step)
            self.model.train()
            for batch in coming:
                begun = time.monotonic()
                rate = recipe.rate(state.step)
                loss, stopping = self._step(batch.rows, rate, stop)
                state.add(batch, loss, time.monotonic() - begun)
                task.advance(1, **self._figures(loss))
                self.reporter.add(state.step, loss=loss, learning_rate=rate, tokens_per_second=state.speed)
                if state.step % recipe.between_evaluations == 0 or state.step == recipe.max_steps:
                    self._watch(task)
                self.saver.save_if_due(state, self.best, stop.is_set() if self.ranks.alone else stopping)

    def _watch(self, task: Task | None = None) -> None:
        """A point of the curve; the best weights so far are kept."""
        state = self.state
        loss = self.evaluate(self.rows.held_out[: self.recipe.watched])
        if loss is None:
            return
        before = state.curve[-1][0] if state.curve else 0
        state.curve.append([state.step, mean(state.losses[before:]), loss])
        self.reporter.add(state.step, eval_loss=loss)
        if task:
            task.advance(0, eval=f"{loss:.3f}")
        if self.recipe.keep == "best" and state.best_step() == state.step:
            self.best = copy_weights(self.model) if state.step < self.recipe.max_steps else None
        self.model.train()

    def _keep(self) -> None:
        """Give the model the weights that are the result."""
        state = self.state
        if state.kept_step is not None:
            return
        state.kept_step = state.step
        if self.best is not None:
            state.kept_step = state.best_step()
            set_weights(self.model, self.best)
            self.best = None
            self.progress.note(f"the held-out loss was lowest after step {state.kept_step} of {state.step}: that "
                               "adapter is kept (--keep last takes the last one)")

    def _step(self, rows: Sequence[Encoded], rate: float, stop: Event) -> tuple[float, bool]:
        """One optimizer step; the batch goes through in parts as large as memory takes.

        Returns:
            the loss, and whether any process is to stop.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        while True:
            with contextlib.suppress(torch.OutOfMemoryError):
                loss = self._gradients(rows)
                break
            self.optimizer.zero_grad(set_to_none=False)
            self._spare_memory(rows)
        loss, stopping = self.ranks.add_gradients(loss, stop.is_set())
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # graphs add to these very tensors
        found = float(loss)  # waits for the GPU, which had all of the step to do by now
        if not math.isfinite(found):
            raise BadInput(f"the loss is {found} at step {self.state.step + 1}",
                           hint="a lower --learning-rate, or look at the rows with: phicli inspect")
        return found, bool(stopping)

    def _gradients(self, rows: Sequence[Encoded]) -> Tensor:
        """Add the gradients of this process's rows of a batch; gives their share of its mean loss, a scalar."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.state.step + 7_919 * self.ranks.number)
        total = torch.zeros((), device=self.model.device)
        own, weight = self.ranks.share(rows), 1 / count_targets(rows)
        for start in range(0, self._most(rows), self.state.micro_batch):
            part = own[start : start + self.state.micro_batch]
            batch = (make_even_batch if self.gradients.use_graphs else make_batch)(part or rows[:1])
            total = total + self.gradients(batch, weight if part else 0.0)
        return total

    def _spare_memory(self, rows: Sequence[Encoded]) -> None:
        """Called when memory ran out: let rows go through in smaller parts, or compute activations twice.

        Smaller parts cost little while they still keep a GPU busy; below that, computing twice costs less.
        """
        state = self.state
        if self.ranks.sharded:  # the others are waiting for this process in the middle of a layer
            raise Missing("not enough memory for the rows of a step",
                          hint="a smaller --batch-size or --seq-len, more --gpus, or a smaller --lora-r")
        self.gradients.forget()
        if self.cuda:
            torch.cuda.empty_cache()
        tokens = sum(sorted((len(row.ids) for row in rows), reverse=True)[: state.micro_batch])
        more = state.recompute < self.recompute.highest
        if state.micro_batch > 1 and (tokens >= 2 * BUSY or not more):
            state.micro_batch = (state.micro_batch + 1) // 2
            self.progress.warn(f"out of memory: going on with {state.micro_batch} rows at a time")
        elif more:
            self._recompute(state.recompute + 1)
            self.progress.warn(f"out of memory: going on with {WORDS[state.recompute]} computed twice (slower)")
        else:
            ways = "a smaller --seq-len, a smaller --lora-r" + (", or --device cpu" if self.cuda else "")
            raise Missing("not enough memory for one row at a time",
                          hint=f"{ways} (a smaller --batch-size no longer helps)")

    def _recompute(self, level: int) -> None:
        self.state.recompute = level
        self.recompute.set(level)
        if not self.recompute.exact:
            self.gradients.drop()

    def _autocast(self) -> contextlib.AbstractContextManager:
        """The float32 adapter weights compute in bfloat16 where the base does."""
        return torch.autocast(self.model.device.type, torch.bfloat16, self.half, cache_enabled=False)

    def _figures(self, loss: float) -> dict[str, Any]:
        shown = {"loss": f"{loss:.3f}", "tok/s": round(self.state.speed)}
        return shown | ({"memory": f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"} if self.cuda else {})
