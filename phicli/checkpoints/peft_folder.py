"""Reading an adapter's folder (PEFT's or mlx-lm's) into plain LoRA matrices."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phicli.architectures import in_layer
from phicli.artifacts.tensors import check_safetensors
from phicli.checkpoints.adapter_names import ADDED, COPY, MATRIX, MLX_WEIGHTS, peft_name, plain
from phicli.checkpoints.adapter_settings import (
    MORE_THAN_MATRICES,
    OWN_PATTERNS,
    PLAIN,
    NoSlot,
    check_patterns,
    read_peft_config,
)
from phicli.checkpoints.tensors import mapped, read_tensor
from phicli.errors import BadInput

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Lora:
    """The update of one linear: W + scaling * b a.

    a: (rank, inputs). b: (outputs, rank); both in the file's dtype, or float32 for bfloat16.
    """

    a: np.ndarray
    b: np.ndarray
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def read_peft(folder: Path) -> dict[str, Lora]:
    """The updates of a LoRA folder, by the full name of the linear ("model.layers.0.self_attn.o_proj").

    rsLoRA's scaling and PEFT's rank and alpha patterns are taken into account. Copies of embeddings that PEFT has
    saved beside the matrices are left out; `copies.check_copies` compares them with the base's.

    Raises:
        NoSlot: an adapter that is not plain LoRA. BadInput: no or damaged config or weights.
    """
    config = read_peft_config(folder)
    path, tensors = weights_path(folder), _tensors(folder)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for key, (module, side) in matrices(folder, [*tensors]).items():
        if not np.isfinite(tensors[key]).all():
            raise BadInput(f"{key}: values that are not finite", where=path, hint="phicli finetune")
        if side in pairs.setdefault(module, {}):
            raise BadInput(f"{module} has two matrices {side}", where=path)
        pairs[module][side] = tensors[key]
    loras = {}
    for module, sides in pairs.items():
        a, b = sides.get("A"), sides.get("B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise BadInput(f"{module}: its A and B do not go together", where=path)
        rank = _own(config, "rank_pattern", module, config.get("r"))
        if rank not in (None, len(a)):
            raise BadInput(f"{module} has rank {len(a)}, adapter_config.json says {rank}", where=path)
        loras[module] = Lora(a, b, _scaling(config, module, len(a)))
    return loras


def check_plain(folder: Path) -> None:
    """Check by settings and names that an adapter is plain LoRA beside linears of layers; raises as `read_peft`."""
    read_peft_config(folder)
    for module, _ in matrices(folder, [*check_weights(folder)]).values():
        if not in_layer(module):
            raise NoSlot(f"{module}: another part than the layers is adapted", folder)


def matrices(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Which of the tensors are LoRA matrices: name -> module, "A" or "B". Raises as `read_peft`."""
    found, path = {}, weights_path(folder)
    for name in names:
        short = plain(peft_name(name))
        if matrix := MATRIX.fullmatch(short):
            found[name] = (matrix["module"], matrix["side"])
        elif more := next((why for part, why in MORE_THAN_MATRICES.items() if part in short), None):
            raise NoSlot(f"{name}: {more}", folder)
        elif not COPY.fullmatch(short):
            raise BadInput(f"{name}: not a matrix of plain LoRA", where=path, hint=PLAIN)
    if not found:
        raise BadInput("no LoRA matrices in it", where=path, hint=PLAIN)
    return found


def _conversion(path: Path) -> str:
    """The command that writes pickled weights again in safetensors form. path: of those."""
    old, new = json.dumps(str(path.with_suffix(".bin"))), json.dumps(str(path))
    code = (f"import torch; from safetensors.torch import save_file; "
            f"save_file(torch.load({old}, map_location=\"cpu\", weights_only=True), {new})")
    return f"python -c {shlex.quote(code)}"


def check_weights(folder: Path) -> dict[str, Any]:
    """The header of an adapter's weights. Raises BadInput: damaged, or there are none in safetensors form."""
    check_patterns(folder, OWN_PATTERNS)
    path = weights_path(folder)
    if not path.is_file():
        pickled = path.with_suffix(".bin").is_file()
        more = "; pickled weights (.bin) are not opened" if pickled else ""
        raise BadInput(f"no {WEIGHTS}{more}", where=folder,
                       hint=f"if you trust them: {_conversion(path)}" if pickled else None)
    header = check_safetensors(path)
    names: dict[str, str] = {}
    for name in header:
        if (other := names.setdefault(ADDED.sub("", name), name)) != name:
            raise BadInput(f"{other} and {name} are the same matrix", where=path)
    return header


def weights_path(folder: Path) -> Path:
    """Where an adapter's tensors are."""
    found = folder / MLX_WEIGHTS
    return found if found.is_file() and not (folder / WEIGHTS).is_file() else folder / WEIGHTS


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732)."""
    alpha = _own(config, "alpha_pattern", module, config.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _own(config: dict[str, Any], patterns: str, module: str, default: Any) -> Any:
    """What a pattern of the adapter's settings gives a module, as PEFT matches them; `default` where none does."""
    found = (value for pattern, value in (config.get(patterns) or {}).items()
             if re.fullmatch(rf"(.*\.)?({pattern})", module))
    return next(found, default)


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """The file's tensors, mapped and not read, but for bfloat16, which becomes float32."""
    path, header = weights_path(folder), check_weights(folder)
    content = mapped(path)
    found = {name: read_tensor(path, entry, content=content) for name, entry in header.items()
             if not COPY.fullmatch(plain(name))}
    return {peft_name(name): found[name].T for name in found} if path.name == MLX_WEIGHTS else found
