"""Names and layouts that other programs give an adapter's matrices, and what PEFT calls the same."""

import re
from collections.abc import Mapping
from typing import Any

from phicli.architectures import CONTAINERS, EMBEDDINGS
from phicli.errors import BadInput

HEADS = ("lm_head", "embed_out")
# Put before a module's name by PEFT, by DataParallel and by torch.compile, and behind it by PEFT with the adapter's.
PREFIX = re.compile(r"^(?:module\.|base_model\.model\.)*")
COMPILED = "_orig_mod."
MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?!weight$)[^.]+)?\.weight")
COPY = re.compile(rf"(?:.*\.)?(?P<module>{'|'.join((*EMBEDDINGS, *HEADS))})"
                  r"(?:\.base_layer|\.original_module|\.modules_to_save(?:\.default)?)?\.weight")
# What savers put into names, all of it: names that are alike without it mean the same tensor.
ADDED = re.compile(rf"^.*?(?=\b(?:{CONTAINERS})\.\d)|^(?:base_model\.model\.)+|_orig_mod\.|\.default(?=\.|$)")
MLX_WEIGHTS = "adapters.safetensors"
MLX_SIDE = re.compile(r"\.lora_([ab])$")


def plain(name: str) -> str:
    """A tensor's name without what savers put before the module's."""
    return PREFIX.sub("", name.replace(COMPILED, ""))


def is_mlx(config: Any) -> bool:
    """Whether an adapter's settings are mlx-lm's."""
    return isinstance(config, dict) and "peft_type" not in config and isinstance(config.get("lora_parameters"), dict)


def settings_from_mlx(config: Mapping[str, Any]) -> dict[str, Any]:
    """mlx-lm's settings in PEFT's terms. mlx-lm multiplies by `scale` itself, not by alpha / rank.

    Raises:
        BadInput: an adapter that is not made of matrices beside linears, or numbers missing.
    """
    kind, given = config.get("fine_tune_type", "lora"), config["lora_parameters"]
    if kind not in ("lora", "dora"):
        raise BadInput(f"fine_tune_type {kind!r} is no adapter")
    rank, scale = given.get("rank"), given.get("scale")
    if type(rank) is not int or isinstance(scale, bool) or not isinstance(scale, int | float):
        raise BadInput("lora_parameters: rank or scale is no number")
    return {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank, "use_dora": kind == "dora",
            "target_modules": [str(key).rpartition(".")[2] for key in given.get("keys") or ()]}


def peft_name(name: str) -> str:
    """PEFT's name of a tensor of mlx-lm's: lora_a, (inputs, rank), and lora_b are PEFT's, the other way round."""
    return MLX_SIDE.sub(lambda found: f".lora_{found[1].upper()}.weight", name)
