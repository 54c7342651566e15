"""Reading a PEFT adapter folder into plain LoRA matrices, without torch; what is not plain LoRA is refused by name."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from phicli.architectures import CONTAINERS
from phicli.artifacts.names import ADAPTER_CONFIG
from phicli.artifacts.reading import check_regular, read_json
from phicli.artifacts.tensors import check_safetensors
from phicli.errors import BadInput
from phicli.text.bounds import check_pattern

WEIGHTS = "adapter_model.safetensors"
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# What savers put into names.
ADDED = re.compile(rf"^.*?(?=\b(?:{CONTAINERS})\.\d)|^(base_model\.model\.)+|\.default(?=\.|$)")
PLAIN = "phicli finetune --method lora"

# Settings that PEFT takes for regular expressions.
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "alpha_pattern", "rank_pattern")
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
BASE_CHANGED = ("pissa", "olora", "corda", "milora", "lora_ga")  # initializations that subtract from the base


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
    """The updates of a PEFT LoRA folder, by the full name of the linear ("model.layers.0.self_attn.o_proj").

    rsLoRA's scaling and PEFT's rank and alpha patterns are taken into account.

    Raises:
        BadInput: no or damaged config or weights, or an adapter that is not plain LoRA.
    """
    config = read_peft_config(folder)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in _tensors(folder / WEIGHTS).items():
        found = KEY.fullmatch(key)
        if not found:
            raise BadInput(f"{key}: not a matrix of plain LoRA", where=folder / WEIGHTS, hint=PLAIN)
        if not np.isfinite(tensor).all():
            raise BadInput(f"{key}: values that are not finite", where=folder / WEIGHTS, hint="phicli finetune")
        pairs.setdefault(found["module"], {})[found["side"]] = tensor
    if not pairs:
        raise BadInput("no LoRA matrices in it", where=folder / WEIGHTS, hint=PLAIN)
    loras = {}
    for module, sides in pairs.items():
        a, b = sides.get("A"), sides.get("B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise BadInput(f"{module}: its A and B do not go together", where=folder / WEIGHTS)
        rank = _own(config, "rank_pattern", module, config.get("r"))
        if rank not in (None, len(a)):
            raise BadInput(f"{module} has rank {len(a)}, adapter_config.json says {rank}", where=folder / WEIGHTS)
        loras[module] = Lora(a, b, _scaling(config, module, len(a)))
    return loras


def read_peft_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA adapter.

    Raises:
        BadInput: missing, damaged, or of an adapter that is not plain LoRA.
    """
    path = folder / ADAPTER_CONFIG
    if not folder.is_dir():
        raise BadInput("no such adapter folder", where=folder, hint="phicli finetune makes one")
    check_regular(folder)
    try:
        config = read_json(path)
        method = str(config["peft_type"]).upper()
    except FileNotFoundError:
        raise BadInput("no adapter_config.json: not a PEFT adapter", where=folder) from None
    except (KeyError, TypeError) as e:
        raise BadInput(f"damaged adapter settings: {e!r}", where=path) from None
    numbers = [config.get("lora_alpha", 1), config.get("r") or 1]
    for pattern in ("alpha_pattern", "rank_pattern"):
        try:
            numbers += [value for name, value in (config.get(pattern) or {}).items() if re.compile(name)]
        except (AttributeError, re.error, RecursionError, OverflowError) as e:
            raise BadInput(f"damaged adapter settings: {pattern}: {e}", where=path) from None
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise BadInput("damaged adapter settings: lora_alpha or r is no number", where=path)
    if method != "LORA":
        raise BadInput(f"adapters of the method {method} are not low-rank, so the model's slots cannot hold them",
                       where=folder, hint=PLAIN)
    for name, why in MORE_THAN_LORA.items():
        if config.get(name):
            raise BadInput(f"{name}: {why}, which the model's slots cannot hold", where=path, hint=PLAIN)
    if config.get("bias", "none") != "none":
        raise BadInput("bias: biases are trained, which the model's slots cannot hold", where=path, hint=PLAIN)
    if str(config.get("init_lora_weights")).lower().startswith(BASE_CHANGED):
        raise BadInput(f"started by {config['init_lora_weights']}, which changes the base model's weights", where=path,
                       hint="save it with PEFT's path_initial_model_for_weight_conversion")
    return config


def check_patterns(folder: Path) -> None:
    """Raises BadInput: an adapter whose settings hold a regular expression that could take time without end."""
    path = folder / ADAPTER_CONFIG
    settings = read_json(path) if path.is_file() else {}
    for name in PATTERNS if isinstance(settings, dict) else ():
        found = settings.get(name) or ()
        for pattern in [found] if isinstance(found, str) else found if isinstance(found, dict | list) else ():
            check_pattern(str(pattern), f"{path}: {name}", most=2)


def check_weights(folder: Path) -> dict[str, Any]:
    """The header of an adapter's weights. Raises BadInput: damaged, or there are none in safetensors form."""
    check_patterns(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = path.with_suffix(".bin").is_file()
        raise BadInput(f"no {WEIGHTS}" + ("; pickled weights (.bin) are not opened" if pickled else ""), where=folder)
    header = check_safetensors(path)
    names: dict[str, str] = {}
    for name in header:
        if (other := names.setdefault(ADDED.sub("", name), name)) != name:
            raise BadInput(f"{other} and {name} are the same matrix", where=path)
    return header


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732)."""
    alpha = _own(config, "alpha_pattern", module, config.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _own(config: dict[str, Any], patterns: str, module: str, default: Any) -> Any:
    """What a pattern of the adapter's settings gives a module, as PEFT matches them; `default` where none does."""
    found = (value for pattern, value in (config.get(patterns) or {}).items()
             if re.fullmatch(rf"(.*\.)?({pattern})", module))
    return next(found, default)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The file's tensors, mapped and not read, but for bfloat16, which becomes float32."""
    header = check_weights(path.parent)
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int(content[:8].view("<u8")[0])
    out = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise BadInput(f"{name}: {entry['dtype']} is no floating-point type", where=path)
        begin, end = (start + offset for offset in entry["data_offsets"])
        found = np.frombuffer(content[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        out[name] = found.astype(np.float32) if entry["dtype"] == "BF16" else found  # numpy itself knows no bfloat16
    return out
