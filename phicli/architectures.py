"""What is known of each family of decoders, as data: the names of its parts, and which weights may share AWQ's scales.

To add a family: an entry in ARCHITECTURES, under the `model_type` of its config.json, and one in
tests/family_models.py. Commands refuse families without one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scaling:
    """One place to scale, see `phicli.quantization.scaling`.

    A scaling divides the channels that a producer puts out and multiplies the inputs of its consumers, so that the
    layer computes the same function. That holds where nothing nonlinear and no residual stands between them.

    producer: module in a decoder layer whose output channels are divided.
    consumers: linears that read them, and nothing else does.
    kind: how an input channel of the consumers maps to a parameter of the producer, see `scaling.channels`.
    """

    producer: str
    consumers: tuple[str, ...]
    kind: str = "norm"


@dataclass(frozen=True)
class Architecture:
    """A family of decoders.

    scalings: of one layer, in the order in which they are searched; empty where they are not known.
    layers, embedding, norm, head: modules of the language model, as transformers names them.
    modules: a module's path in a layer -> the path that Llama or Phi-3 has for the same, where they differ.
    """

    scalings: tuple[Scaling, ...] = ()
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    modules: Mapping[str, str] = field(default_factory=dict)

    def usual_path(self, module: str) -> str:
        """The path in a Llama's or Phi-3's layer of what this family has at `module`."""
        return self.modules.get(module, module)


PHI3 = (
    Scaling("input_layernorm", ("self_attn.qkv_proj",)),
    Scaling("self_attn.qkv_proj", ("self_attn.o_proj",), "value_of_qkv"),
    Scaling("post_attention_layernorm", ("mlp.gate_up_proj",)),
    Scaling("mlp.gate_up_proj", ("mlp.down_proj",), "up_of_gate_up"),
)
LLAMA = (
    Scaling("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Scaling("self_attn.v_proj", ("self_attn.o_proj",), "value"),
    Scaling("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Scaling("mlp.up_proj", ("mlp.down_proj",), "linear"),
)


def _gemma(norm_before_mlp: str) -> Architecture:
    """Gemma's norms multiply by 1 + weight, and Gemma 2 and 3 have a second norm before each residual."""
    return Architecture((
        Scaling("input_layernorm", LLAMA[0].consumers, "norm_plus_one"),
        LLAMA[1],
        Scaling(norm_before_mlp, LLAMA[2].consumers, "norm_plus_one"),
        LLAMA[3],
    ))


ARCHITECTURES: dict[str, Architecture] = {
    "phi3": Architecture(PHI3),  # Phi-3, Phi-3.5, Phi-4-mini
    "llama": Architecture(LLAMA),
    "mistral": Architecture(LLAMA),
    "qwen2": Architecture(LLAMA),
    "qwen3": Architecture(LLAMA),
    "gemma": _gemma("post_attention_layernorm"),
    "gemma2": _gemma("pre_feedforward_layernorm"),
    "gemma3_text": _gemma("pre_feedforward_layernorm"),
    "granite": Architecture(LLAMA),
    "smollm3": Architecture(LLAMA),
    "olmo2": Architecture((LLAMA[1], LLAMA[3])),  # its norms stand after the linears
    "phi": Architecture((  # Phi-1.5 and 2; attention and MLP read one norm
        Scaling("input_layernorm", (*LLAMA[0].consumers, "mlp.fc1")),
        Scaling("self_attn.v_proj", ("self_attn.dense",), "value"),
    ), norm="model.final_layernorm", modules={"self_attn.dense": "self_attn.o_proj"}),
}
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def architecture_of(model_type: str) -> Architecture:
    """What is known of a family; of an unknown one, Llama's names and no scalings."""
    return ARCHITECTURES.get(model_type, Architecture())


def last(path: str) -> str:
    """The last part of a module's path."""
    return path.rpartition(".")[2]


# Names that a file may have without its config.json, and of families that have no entry.
_USUAL = {"query_key_value": "qkv_proj", "dense_h_to_4h": "gate_up_proj", "dense_4h_to_h": "down_proj",
          "dense": "o_proj"} | {last(theirs): last(usual) for one in ARCHITECTURES.values()
                                for theirs, usual in one.modules.items()}
CONTAINERS = "|".join(sorted({last(one.layers) for one in ARCHITECTURES.values()} | {"h", "blocks"}))
EMBEDDINGS = tuple(sorted({last(one.embedding) for one in ARCHITECTURES.values()}
                          | {"wte", "embed_in", "word_embeddings"}))
_IN_LAYER = re.compile(rf"(?:^|\.)(?:{CONTAINERS})\.(\d+)\.(.+)")


def in_layer(name: str) -> tuple[int, str] | None:
    """The layer that a full name of a module or tensor is in, and its path there; None if it is in none."""
    found = _IN_LAYER.search(name)
    return (int(found[1]), found[2]) if found else None


def projection(name: str) -> str:
    """What genai's builder, as Llama, calls the linear whose name ends in `name`."""
    return _USUAL.get(name, name)
