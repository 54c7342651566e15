"""What adapter_config.json says of an adapter (PEFT's or mlx-lm's); what is more than plain LoRA is named."""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts.names import ADAPTER_CONFIG
from phicli.artifacts.reading import check_regular, read_json
from phicli.checkpoints.adapter_names import COPY, is_mlx, settings_from_mlx
from phicli.errors import BadInput
from phicli.text.bounds import check_pattern

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
