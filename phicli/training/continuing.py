"""Going on from an adapter that is there: its matrices in a new adapter of the same ranks, scales and linears."""

import re
from collections import Counter
from typing import Any

import torch

from phicli.checkpoints.peft_folder import Lora
from phicli.errors import BadInput


def continue_from(base: Any, loras: dict[str, Lora], dropout: float) -> Any:
    """A PeftModel on the base that computes what the adapter does, its matrices trainable in float32.

    Nothing of the adapter's own settings reaches peft.

    Raises:
        BadInput: the base has no such linear, or one of another shape.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    for name, lora in loras.items():
        linear = base.get_submodule(name) if name in dict(base.named_modules()) else None
        have = (lora.a.shape[1], lora.b.shape[0])
        if linear is None or have != (linear.in_features, linear.out_features):
            raise BadInput(f"{name}: the base has no such linear of {have[0]} inputs and {have[1]} outputs",
                           where="--from-adapter")
    ranks: dict[str, int] = {name: lora.rank for name, lora in loras.items()}
    alphas = {name: round(lora.scaling * lora.rank, 6) for name, lora in loras.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha: Any = Counter(alphas.values()).most_common(1)[0][0]  # peft says int, and takes any number
    adapted: Any = get_peft_model(base, LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, task_type=TaskType.CAUSAL_LM,
        target_modules=_targets(base, loras),
        rank_pattern={re.escape(name): own for name, own in ranks.items() if own != rank},
        alpha_pattern={re.escape(name): own for name, own in alphas.items() if own != alpha},
    ))
    with torch.no_grad():
        for name, lora in loras.items():
            module = adapted.get_base_model().get_submodule(name)
            for side, matrix in ((module.lora_A, lora.a), (module.lora_B, lora.b)):
                side["default"].weight.copy_(torch.tensor(matrix))
    return adapted


def _targets(base: Any, loras: dict[str, Lora]) -> list[str]:
    """Last parts of the names if those say the same; else the full names."""
    last = {name.rpartition(".")[2] for name in loras}
    meant = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in last}
    return sorted(last if meant == set(loras) else loras)
