"""Reading an adapter's folder (PEFT's or mlx-lm's) into plain LoRA matrices; what is not plain LoRA is named."""

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
from phicli.artifacts.names import ADAPTER_CONFIG
from phicli.artifacts.reading import check_regular, read_json
from phicli.artifacts.tensors import check_safetensors
from phicli.checkpoints.adapter_names import (
    ADDED,
    COPY,
    MATRIX,
    MLX_WEIGHTS,
    is_mlx,
    peft_name,
    plain,
    settings_from_mlx,
)
from phicli.checkpoints.tensors import mapped, read_tensor
from phicli.errors import BadInput
from phicli.text.bounds import check_pattern

WEIGHTS = "adapter_model.safetensors"
PLAIN = "phicli finetune --method lora"
UNMERGEABLE = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT",
               "XLORA")  # methods that change no weights

# Settings that PEFT takes for regular expressions.
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "alpha_pattern", "rank_pattern")
OWN_PATTERNS = PATTERNS[-2:]  # those that are matched here
# Settings with which an adapter is more than (x A) B added to a projection, and what they are.
MORE_THAN_LORA = {
    "use_dora": "DoRA scales each row of the weight itself",
    "modules_to_save": "whole modules are trained",
    "lora_bias": "biases are trained",
    "use_qalora": "QALoRA pools the input",
    "use_bdlora": "BD-LoRA has matrices in blocks",
    "kasa_config": "KaSA changes the weight itself",
    "arrow_config": "Arrow chooses among adapters at every token",
    "layer_replication": "layers are replicated",
    "trainable_token_indices": "token embeddings are trained",
    "target_parameters": "parameters that are no linear layers are adapted",
    "alora_invocation_tokens": "activated LoRA acts from a token on",
}
# Parts of names of tensors that say the same.
MORE_THAN_MATRICES = {"lora_magnitude_vector": MORE_THAN_LORA["use_dora"], "lora_embedding_": "token embeddings are "
                      "adapted", ".lora_B.bias": MORE_THAN_LORA["lora_bias"]}
BASE_CHANGED = ("pissa", "olora", "corda", "milora", "lora_ga")  # initializations that subtract from the base


class NoSlot(BadInput):
    """A sound adapter that is more than matrices beside the projections: it can only be merged into a model."""

    def __init__(self, message: str, folder: Path):
        super().__init__(f"{message}, which the model's slots cannot hold", where=folder,
                         hint=f"phicli merge --adapter {shlex.quote(str(folder))}")


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


def read_peft_config(folder: Path) -> dict[str, Any]:
    """The settings of a LoRA adapter, mlx-lm's in PEFT's terms.

    Raises:
        NoSlot: of an adapter that is not plain LoRA. BadInput: missing or damaged.
    """
    config = read_settings(folder)
    method = str(config["peft_type"]).upper()
    if method in UNMERGEABLE:
        raise BadInput(f"adapters of the method {method} change no weights", where=folder, hint=PLAIN)
    if method != "LORA":
        raise NoSlot(f"adapters of the method {method} are not low-rank", folder)
    for name, why in MORE_THAN_LORA.items():
        saved = config.get(name)
        if saved and not (name == "modules_to_save" and all(COPY.fullmatch(f"{module}.weight") for module in saved)):
            raise NoSlot(f"{name}: {why}", folder)
    if config.get("bias", "none") != "none":
        raise NoSlot("bias: biases are trained", folder)
    if str(config.get("init_lora_weights")).lower().startswith(BASE_CHANGED):
        raise NoSlot(f"started by {config['init_lora_weights']}, the base model's weights are changed", folder)
    return config


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of an adapter of any kind, with sound ranks and alphas, mlx-lm's in PEFT's terms.

    Raises:
        BadInput: missing or damaged.
    """
    path = folder / ADAPTER_CONFIG
    if not folder.is_dir():
        raise BadInput("no such adapter folder", where=folder, hint="phicli finetune")
    check_regular(folder)
    try:
        config = read_json(path)
        config = settings_from_mlx(config) if is_mlx(config) else config
        _ = config["peft_type"]
    except FileNotFoundError:
        inside = sorted(found.parent for found in folder.glob(f"*/{ADAPTER_CONFIG}"))
        raise BadInput("no adapter_config.json: not a PEFT adapter", where=folder,
                       hint=f"the folder in it: {inside[-1]}" if inside else None) from None
    except (BadInput, KeyError, TypeError) as e:
        what = e.message if isinstance(e, BadInput) else repr(e)
        raise BadInput(f"damaged adapter settings: {what}", where=path) from None
    numbers = [config.get("lora_alpha", 1), config.get("r") or 1]
    for pattern in ("alpha_pattern", "rank_pattern"):
        try:
            numbers += [value for name, value in (config.get(pattern) or {}).items() if re.compile(name)]
        except (AttributeError, re.error, RecursionError, OverflowError) as e:
            raise BadInput(f"damaged adapter settings: {pattern}: {e}", where=path) from None
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise BadInput("damaged adapter settings: lora_alpha or r is no number", where=path)
    return config


def check_patterns(folder: Path, names: Sequence[str] = PATTERNS) -> None:
    """Raises BadInput: an adapter whose settings hold a regular expression that could take time without end, or
    the name of a module to import.
    """
    path = folder / ADAPTER_CONFIG
    settings = read_json(path) if path.is_file() else {}
    if isinstance(settings, dict) and settings.get("megatron_config"):
        raise BadInput("megatron_config: peft would import a module by a name in it", where=path)
    for name in names if isinstance(settings, dict) else ():
        found = settings.get(name) or ()
        for pattern in [found] if isinstance(found, str) else found if isinstance(found, dict | list) else ():
            check_pattern(str(pattern), f"{path}: {name}", most=2)


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
