"""When a training run is saved: from time to time, and when somebody wants to stop."""

import time
from dataclasses import asdict
from typing import Any

import torch

from phicli.training.checkpoint import Checkpoint, Weights
from phicli.training.recipe import Recipe
from phicli.training.state import TrainingState

WRITING_SHARE = 0.05  # of the time that writing checkpoints may take


class Saver:
    """Writes a run's checkpoints, if it has one to write.

    saved: the step that the checkpoint is of.
    """

    def __init__(self, checkpoint: Checkpoint | None, model: Any, optimizer: torch.optim.Optimizer, recipe: Recipe):
        self.checkpoint, self.model, self.optimizer, self.recipe = checkpoint, model, optimizer, recipe
        self.saved, self.last_write, self.write_seconds = 0, time.monotonic(), 0.0

    def save_if_due(self, state: TrainingState, best: Weights | None, stopping: bool) -> None:
        """best: weights to keep in the end, where they are not the model's. Raises KeyboardInterrupt if stopping."""
        due = state.step % self.recipe.checkpoint_steps == 0 and state.step < self.recipe.max_steps
        if stopping:
            self.save(state, best)
            raise KeyboardInterrupt
        if due and self.write_seconds <= WRITING_SHARE * (time.monotonic() - self.last_write):
            before = time.monotonic()
            self.save(state, best)
            self.last_write = time.monotonic()
            self.write_seconds = self.last_write - before

    def save(self, state: TrainingState, best: Weights | None) -> None:
        if self.checkpoint:
            self.checkpoint.save(self.model, self.optimizer, asdict(state), best)
            self.saved = state.step

    def kept(self) -> str:
        """What is there for a next time, in words."""
        return f"step {self.saved} is kept, and the same command goes on from there" if self.saved else ""
