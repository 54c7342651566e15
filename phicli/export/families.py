"""genai's builder put right, family by family, where it does not build what transformers computes.

Of genai 0.18 these are wrong: windows of Mistral and Phi-3 (left out of the attention, and told to the runtime all the
same), the bounded cache of windowed layers (which is indexed past its end, and cannot be cut), Gemma 3's two rotary
bases as transformers 5 names them, SmolLM3's layers without rotary embedding, and most kinds of rope scaling. OLMo 2
it does not know.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from phicli.workflow.patching import replaced

OPTIONS = {"windowed_kv_cache": "false"}
WINDOW_IN_ALL = ("mistral", "phi3")  # where transformers has no layer_types, and a window is every layer's


class Family:
    """What the builder is told otherwise than in config.json."""

    def __init__(self) -> None:
        self.frequencies: tuple[Any, float] | None = None  # of rotary embeddings, and the factor of their tables

    def settle(self, config: Any) -> None:
        """Change the transformers config that the builder reads, in place."""
        window, longest = getattr(config, "sliding_window", None), config.max_position_embeddings
        if not window or window >= longest:
            config.sliding_window = None
        elif config.model_type in WINDOW_IN_ALL:
            config.layer_types = ["sliding_attention"] * config.num_hidden_layers
        if config.architectures == ["Phi3ForCausalLM"] and config.rope_parameters["rope_type"] == "default":
            config.architectures = ["MistralForCausalLM"]  # the same; of a Phi-3 genai takes LongRoPE for granted
        if config.model_type == "olmo2":
            config.architectures = ["OlmoForCausalLM"]  # whose place `put_right` gives to OLMo 2's class
        self._settle_rope(config)

    def _settle_rope(self, config: Any) -> None:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        rope, layer_type = config.rope_parameters, {}
        if "sliding_attention" in rope:
            config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
            rope, layer_type = rope["full_attention"], {"layer_type": "full_attention"}
        kind = rope["rope_type"]
        if kind == "longrope":
            rope["type"] = kind
        elif kind != "default":
            self.frequencies = ROPE_INIT_FUNCTIONS[kind](config, "cpu", **layer_type)
            rope = {**rope, "rope_type": "default"}
        config.rope_parameters = rope

    def rotary_tables(self, builder: Any) -> tuple[Any, Any] | None:
        """Cosines and sines, (positions, frequencies), where the scaling is one of transformers'; else None.

        Once: Gemma 3's builder asks for the scaled tables of its global layers first, for the local ones then.
        """
        import torch

        if self.frequencies is None:
            return None
        (inverse, factor), self.frequencies = self.frequencies, None
        angles = torch.outer(torch.arange(builder.rope_attrs["cache_length"]).float(), inverse.float())
        return angles.cos() * factor, angles.sin() * factor


@contextlib.contextmanager
def put_right() -> Iterator[Family]:
    """While the block runs, the builder builds every family as transformers computes it, once its config is settled."""
    from onnxruntime_genai.models import builder

    from phicli.export.olmo2 import Olmo2Model

    family = Family()

    def make_tables(self: Any) -> Any:
        found = family.rotary_tables(self)
        return original_tables(self) if found is None else found

    def make_smollm3_attention(self: Any, layer_id: int, *args: Any, **keywords: Any) -> None:
        self.attention_attrs["rope"] = bool(self.no_rope_layers[layer_id])
        try:
            original_attention(self, layer_id, *args, **keywords)
        finally:
            self.attention_attrs["rope"] = True

    with (replaced(builder.Model, "make_rotary_embedding_caches_from_scratch", make_tables) as original_tables,
          replaced(builder.SmolLM3Model, "make_attention", make_smollm3_attention) as original_attention,
          replaced(builder, "OLMoModel", Olmo2Model)):
        yield family
