"""The training loop: AdamW on an adapter's weights, exact to resume, sparing with memory."""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from phicli.errors import BadInput, Missing
from phicli.progress import SILENT, Progress
from phicli.text import Encoded
from phicli.training.checkpoint import Checkpoint, trainable
from phicli.training.determinism import repeatable
from phicli.training.graphs import Gradients
from phicli.training.interrupt import ctrl_c
from phicli.training.loss import RowLoss, count_targets, make_batch, make_even_batch
from phicli.training.rows import Rows, batches

WARMUP = 0.1  # of the steps
CLIP = 1.0  # largest norm of the gradient
BETAS = (0.9, 0.999)
WRITING_SHARE = 0.05  # of the time that writing checkpoints may take


@dataclass(frozen=True)
class Recipe:
    """How to train. max_steps, batch_size (rows), learning_rate (peak), schedule, seed; checkpoint_steps between."""

    max_steps: int
    batch_size: int
    learning_rate: float
    schedule: str
    seed: int
    checkpoint_steps: int


@dataclass
class TrainingState:
    """Where training stands. losses: of each step so far, mean per token. tokens: seen, padding not counted."""

    step: int = 0
    micro_batch: int = 0
    recompute: bool = False
    held_out_before: float | None = None
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


class Trainer:
    """One run.

    A step depends on weights, optimizer, seed and its number alone (dropout is seeded anew for each), so a run that
    goes on from a checkpoint ends exactly as one that was never interrupted.
    """

    def __init__(
        self, model: Any, rows: Rows, recipe: Recipe, checkpoint: Checkpoint | None = None, progress: Progress = SILENT
    ):
        """model: a PeftModel on its device, float32 adapter weights."""
        self.model, self.rows, self.recipe = model, rows, recipe
        self.checkpoint, self.progress = checkpoint, progress
        self.loss = RowLoss(model.get_base_model())
        self.parameters = list(trainable(model).values())
        self.cuda = model.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0, fused=self.cuda
        )
        self.gradients = Gradients(self.model, self.loss, self.parameters, self._autocast)
        self.state = TrainingState(micro_batch=recipe.batch_size)
        if self.cuda:
            for module in model.modules():
                if hasattr(module, "cast_input_dtype_enabled"):
                    module.cast_input_dtype_enabled = False  # autocast casts; peft would to float32 and back

    def run(self) -> dict[str, Any]:
        """Train and measure.

        Returns:
            figures: train_loss and held_out_loss before and after (mean per token; training: mean over the first and
            the last tenth of the steps), tokens, tokens_per_second, gpu_bytes (peak) on CUDA.

        Raises:
            Missing: not enough memory even for one row. BadInput: the loss is no number.
            KeyboardInterrupt: Ctrl-C; the state is saved.
        """
        with repeatable(self.cuda):
            self._begin()
            self._steps()
            after = self.evaluate()
        state = self.state
        tenth = max(1, len(state.losses) // 10)
        figures: dict[str, Any] = {
            "train_loss_before": _mean(state.losses[:tenth]), "train_loss_after": _mean(state.losses[-tenth:]),
            "held_out_loss_before": state.held_out_before, "held_out_loss_after": after,
            "tokens": state.tokens, "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
            "micro_batch": state.micro_batch,
        }
        if self.cuda:
            figures["gpu_bytes"] = torch.cuda.max_memory_allocated()
        return figures

    def evaluate(self) -> float | None:
        """Mean loss per token of the held-out rows, or None where there are none."""
        rows = sorted(self.rows.held_out, key=lambda row: len(row.ids))
        if not rows:
            return None
        self.model.eval()
        total, start = 0.0, 0
        while start < len(rows):
            part = rows[start : start + self.state.micro_batch]
            with contextlib.suppress(torch.OutOfMemoryError):
                with torch.no_grad(), self._autocast():
                    total += float(self.loss(make_batch(part)))
                start += len(part)
                continue
            self._spare_memory()
        return total / count_targets(rows)

    def _begin(self) -> None:
        saved = self.checkpoint.load(self.model, self.optimizer) if self.checkpoint else None
        if saved is not None:
            self.state = TrainingState(**saved)
            if self.state.recompute:
                self._recompute()
            self.progress.note(f"going on from step {self.state.step}")
        else:
            self.state.held_out_before = self.evaluate()

    def _steps(self) -> None:
        state, recipe, train = self.state, self.recipe, self.rows.train
        numbers = batches([len(row.ids) for row in train], recipe.batch_size, recipe.seed)
        self.model.train()
        last_write, write_seconds = time.monotonic(), 0.0
        with self.progress.task("finetune", total=recipe.max_steps, unit="steps") as task, ctrl_c() as stop:
            task.advance(state.step)
            for batch in islice(numbers, state.step, recipe.max_steps):
                begun = time.monotonic()
                rows = [train[i] for i in batch]
                rate = recipe.learning_rate * schedule_factor(state.step, recipe.max_steps, recipe.schedule)
                loss = self._step(rows, rate)
                state.step += 1
                state.losses.append(loss)
                state.tokens += sum(len(row.ids) for row in rows)
                state.seconds += time.monotonic() - begun
                task.advance(1, **self._figures(loss, rate))
                if stop.is_set():
                    self._save()
                    self.progress.note(f"stopped after step {state.step}; the same command goes on from there")
                    raise KeyboardInterrupt
                due = state.step % recipe.checkpoint_steps == 0 and state.step < recipe.max_steps
                if due and write_seconds <= WRITING_SHARE * (time.monotonic() - last_write):
                    before = time.monotonic()
                    self._save()
                    last_write = time.monotonic()
                    write_seconds = last_write - before

    def _step(self, rows: Sequence[Encoded], rate: float) -> float:
        """One optimizer step; the batch goes through in parts as large as memory takes."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        while True:
            with contextlib.suppress(torch.OutOfMemoryError):
                loss = self._gradients(rows)
                break
            self.optimizer.zero_grad()
            self._spare_memory()
        if not math.isfinite(loss):
            raise BadInput(f"the loss is {loss} at step {self.state.step + 1}",
                           hint="a lower --learning-rate, or look at the rows with: phicli inspect")
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # graphs add to these very tensors
        return loss

    def _gradients(self, rows: Sequence[Encoded]) -> float:
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.state.step)
        targets = count_targets(rows)
        total: float | Tensor = 0.0
        for start in range(0, len(rows), self.state.micro_batch):
            part = rows[start : start + self.state.micro_batch]
            batch = make_even_batch(part) if self.gradients.use_graphs else make_batch(part)
            total = total + self.gradients(batch, 1 / targets)
        return float(total)

    def _spare_memory(self) -> None:
        """Called when memory ran out: halve the rows that go through at once, then recompute activations."""
        state = self.state
        self.gradients.drop()
        if self.cuda:
            torch.cuda.empty_cache()
        if state.micro_batch > 1:
            state.micro_batch = (state.micro_batch + 1) // 2
            self.progress.warn(f"out of memory: going on with {state.micro_batch} rows at a time")
        elif not state.recompute and self.model.get_base_model().supports_gradient_checkpointing:
            state.recompute = True
            self._recompute()
            self.progress.warn("out of memory: going on with activations computed twice (slower)")
        else:
            raise Missing("not enough memory for one row at a time",
                          hint="a smaller --seq-len or --lora-r (a smaller --batch-size no longer helps)")

    def _recompute(self) -> None:
        base = self.model.get_base_model()
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()

    def _save(self) -> None:
        if self.checkpoint:
            self.checkpoint.save(self.model, self.optimizer, asdict(self.state))

    def _autocast(self) -> contextlib.AbstractContextManager:
        """On CUDA the float32 adapter weights compute in bfloat16, as the base does."""
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if self.cuda else contextlib.nullcontext()

    def _figures(self, loss: float, rate: float) -> dict[str, Any]:
        speed = round(self.state.tokens / self.state.seconds)
        shown = {"loss": f"{loss:.3f}", "lr": f"{rate:.1e}", "tok/s": speed}
        return shown | ({"memory": f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"} if self.cuda else {})


def schedule_factor(step: int, steps: int, schedule: str) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then linear, cosine or no decay."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[schedule]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
