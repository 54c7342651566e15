"""Where a training run stands: what a checkpoint keeps beside weights and moments, and the figures made of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from phicli.training.batches import Batch
from phicli.training.loss import count_targets


@dataclass
class TrainingState:
    """Where training stands.

    losses: of each step so far, mean per token. curve: [step, train loss since the point before, held-out loss].
    tokens, trained_tokens: seen (padding not counted), and those that counted. rows, long, left_out: as in `Batch`.
    recompute: what is computed twice, as `phicli.training.recompute` counts it. kept_step: whose weights the model has,
    once training is over. log: where a reporter writes.
    """

    step: int = 0
    micro_batch: int = 0
    recompute: int = 0
    held_out_before: float | None = None
    losses: list[float] = field(default_factory=list)
    curve: list[list[Any]] = field(default_factory=list)
    tokens: int = 0
    trained_tokens: int = 0
    rows: int = 0
    long: int = 0
    left_out: int = 0
    seconds: float = 0.0
    kept_step: int | None = None
    log: str | None = None

    def add(self, batch: Batch, loss: float, seconds: float) -> None:
        """Count a step."""
        self.step += 1
        self.losses.append(loss)
        self.tokens += sum(len(row.ids) for row in batch.rows)
        self.trained_tokens += count_targets(batch.rows)
        self.rows += batch.drawn
        self.long += batch.long
        self.left_out += batch.left_out
        self.seconds += seconds

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / max(self.seconds, 1e-9)

    def best_step(self) -> int | None:
        """The step after which the held-out loss was lowest, the start left out; None where it was not measured."""
        measured = [(loss, step) for step, _, loss in self.curve if step and math.isfinite(loss)]
        return min(measured)[1] if measured else None

    def figures(self, rows: int) -> dict[str, Any]:
        """What a manifest tells of the run; rows: how many there were to train on."""
        tenth = max(1, len(self.losses) // 10)
        return {
            "train_loss_before": mean(self.losses[:tenth]), "train_loss_after": mean(self.losses[-tenth:]),
            "steps": self.step, "kept_step": self.kept_step, "rows": rows, "rows_seen": self.rows,
            "epochs": round(self.rows / rows, 4), "tokens": self.tokens, "trained_tokens": self.trained_tokens,
            "tokens_per_second": round(self.speed, 1), "rows_too_long": self.long, "rows_left_out": self.left_out,
            "micro_batch": self.micro_batch, "curve": self.curve,
        }


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
