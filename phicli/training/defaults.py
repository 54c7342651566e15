"""What a finetune takes when nothing is said: learning rate, layers."""

import re
from pathlib import Path

from phicli.errors import BadInput
from phicli.hub.models import read_config
from phicli.progress import Progress

WITHOUT_SLOTS = ("dora", "loha", "lokr")  # methods whose adapters are more than LoRA's matrices
ALL_LINEAR = "all-linear"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Raise BadInput unless an adapter can have this name: it becomes a folder's and a file's."""
    if not NAME.fullmatch(name):
        raise BadInput("an adapter's name has up to 64 letters, digits, '.', '_' and '-', and begins with a letter or "
                       "digit", where=name)


def default_learning_rate(folder: Path) -> float:
    """5e-4 * (2000 / width)^0.781, a LoRA's best rate as fitted over Llama-like models.

    "LoRA Without Regret" (Schulman et al., 2025): ten times the rate of full training, and hardly dependent on rank.
    """
    if width := _width(folder):
        return float(f"{5e-4 * (2000 / width) ** 0.781:.3g}")
    raise BadInput("no hidden_size in it", where=folder / "config.json", hint="give --learning-rate")


def check_rank(rank: int, folder: Path, progress: Progress) -> None:
    """Warn of a rank that no matrix between vectors of the model's width has."""
    if (width := _width(folder)) and rank > width:
        progress.warn(f"--lora-r {rank} is more than the model's hidden size, {width}: no update of its matrices has a "
                      "higher rank than that, and what is above it only takes time, memory and disk")


def _width(folder: Path) -> int | None:
    config = read_config(folder)
    levels = [level for level in (config, config.get("text_config")) if isinstance(level, dict)]
    found = (level.get(name) for level in levels for name in ("hidden_size", "n_embd", "d_model"))
    return next((width for width in found if isinstance(width, int)), None)


def choose_targets(linears: list[str], wanted: list[str]) -> list[str]:
    """Last parts of the names of the linears to adapt.

    Args:
        linears: full names of the model's. wanted: names from the user, "all-linear" for all.

    Raises:
        BadInput: a name that none of the linears has.
    """
    known = sorted({name.rpartition(".")[2] for name in linears})
    if wanted == [ALL_LINEAR]:
        return known
    wrong = [name for name in wanted if not any(full == name or full.endswith(f".{name}") for full in linears)]
    if wrong or not wanted:
        raise BadInput(f"no linear layer named {', '.join(wrong) or 'nothing'}", where="--target-modules",
                       hint=f"the model's: {', '.join(known)}; or {ALL_LINEAR}")
    return sorted(set(wanted))
