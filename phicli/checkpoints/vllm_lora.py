"""What vLLM takes of LoRA adapters (vllm/lora, 0.20.2)."""

import math
from collections.abc import Iterable
from pathlib import Path

from phicli.artifacts.names import ADAPTER_CONFIG
from phicli.checkpoints.adapter_settings import read_peft_config
from phicli.checkpoints.peft_folder import read_peft
from phicli.errors import BadInput

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that it takes for the largest


def largest_rank(folders: Iterable[Path]) -> int:
    """What vLLM has to be told for the largest rank of PEFT folders.

    Raises:
        BadInput: as `read_peft`, a rank above vLLM's, or linears with scales of their own; vLLM would take one for all,
            without a word.
    """
    largest, place = max((_rank(folder), folder) for folder in folders)
    if largest > RANKS[-1]:
        raise BadInput(f"rank {largest}, and vLLM takes up to {RANKS[-1]}", where=place)
    return next(rank for rank in RANKS if rank >= largest)


def _rank(folder: Path) -> int:
    """The rank of a folder: vLLM judges the settings, and reads the matrices."""
    settings, loras = read_peft_config(folder), read_peft(folder).values()
    rank, alpha = (settings.get(name) for name in ("r", "lora_alpha"))
    if not rank or alpha is None:
        raise BadInput("r or lora_alpha is missing, which vLLM needs", where=folder / ADAPTER_CONFIG)
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if not all(math.isclose(lora.scaling, scale, rel_tol=1e-6) for lora in loras):
        raise BadInput("linears with scales of their own, and vLLM has one for all", where=folder / ADAPTER_CONFIG,
                       hint="phicli's own engine takes it")
    return max(rank, *(lora.rank for lora in loras))
