"""How to train: steps, learning rate, how often the held-out loss is measured."""

import math
from dataclasses import dataclass

DEFAULT_STEPS = 100
WARMUP = 0.1  # of the steps
EVALUATIONS = 10  # a run
EVALUATING_SHARE = 0.1  # of the time that they may take; a row that is measured takes a third of one that is trained on
FEWEST_WATCHED = 16  # rows


@dataclass(frozen=True)
class Recipe:
    """How to train.

    batch_size: rows. learning_rate: at its peak. checkpoint_steps, eval_steps: steps between. keep: "best" or "last",
    the weights that are the result; best are those of the lowest held-out loss.
    """

    max_steps: int
    batch_size: int
    learning_rate: float
    schedule: str
    seed: int
    checkpoint_steps: int
    eval_steps: int | None = None
    keep: str = "best"

    @property
    def between_evaluations(self) -> int:
        """Steps."""
        return self.eval_steps or -(-self.max_steps // EVALUATIONS)

    @property
    def watched(self) -> int:
        """How many held-out rows are measured during training."""
        return max(FEWEST_WATCHED, int(3 * EVALUATING_SHARE * self.between_evaluations * self.batch_size))

    def rate(self, step: int) -> float:
        """The learning rate at a step counted from 0."""
        return self.learning_rate * schedule_factor(step, self.max_steps, self.schedule)


def count_steps(max_steps: int | None, epochs: float | None, rows: int, batch_size: int) -> int:
    """Steps of a run over so many rows: `max_steps`, or what `epochs` take, or whichever is fewer."""
    if epochs is None:
        return max_steps or DEFAULT_STEPS
    whole, part = divmod(epochs, 1)
    steps = max(1, int(whole) * -(-rows // batch_size) + math.ceil(round(part * rows / batch_size, 6)))
    return min(steps, max_steps or steps)


def schedule_factor(step: int, steps: int, schedule: str) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then linear, cosine or no decay."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[schedule]
