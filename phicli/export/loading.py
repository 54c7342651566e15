"""Checkpoints for genai's builder, layer by layer and exactly.

The builder's own loaders take the integers apart to floating point and round them anew, and hold the whole checkpoint
meanwhile. Those of genai 0.18 also know no AWQ checkpoint with linears left in float and no symmetric one of Olive's,
and cut the zero points of Olive's fused projections in the wrong place. What replaces them here moves the integers
only, and gives the builder one layer at a time, the next one being made ready meanwhile.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from phicli.architectures import FUSED, architecture_of, in_layer, last, projection
from phicli.artifacts.tensors import check_safetensors
from phicli.errors import BadInput
from phicli.export.external_data import ExternalData
from phicli.export.repacking import QUANT_METHODS, TENSORRT
from phicli.hub.models import read_config, weight_files
from phicli.workflow.patching import replaced


class FloatProjection:
    """A linear that the checkpoint leaves in float, and that stays so."""

    exclude_from_quantization = True

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias

    def rows(self, rows: slice) -> "FloatProjection":
        return FloatProjection(self.weight[rows], None if self.bias is None else self.bias[rows])


class StreamedCheckpoint:
    """A quantized checkpoint as the builder walks it: embedding, layers, final norm, output projection.

    Args:
        folder: an AWQ or Olive checkpoint. layers: how many to give. qkv: outputs of q, k and v.
        done: called each time the builder has built what it was given. signed: see `Projection.signed`.

    Raises:
        BadInput: a tensor is missing, or the checkpoint has something that is not known.
    """

    def __init__(self, folder: Path, layers: int, qkv: tuple[int, int, int], done: Callable[[], None],
                 signed: bool = False):
        from onnxruntime_genai.models.loaders.base import TensorModule

        self.folder, self.layers, self.qkv, self.done, self.signed = folder, layers, qkv, done, signed
        config = read_config(folder)
        self.quantization, self.names = config["quantization_config"], architecture_of(config["model_type"])
        self.files = {name: path for path in weight_files(folder) for name in check_safetensors(path)}
        embedding, norm = f"{self.names.embedding}.weight", self.names.norm
        if embedding not in self.files:
            raise BadInput("no embedding in floating point in it", where=folder)
        self.embedding = TensorModule(self._read(embedding))
        self.final_norm = TensorModule(self._read(f"{norm}.weight"), self._maybe(f"{norm}.bias"))
        tied = not any(name.startswith(f"{self.names.head}.") for name in self.files)
        self.lm_head = TensorModule(self.embedding.weight) if tied else self._head(TensorModule)

    def modules(self) -> Iterator[Any]:
        for module in chain([self.embedding], self._layers(), [self.final_norm, self.lm_head]):
            yield module
            self.done()

    def _layers(self) -> Iterator[Any]:
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._layer, 0)
            for number in range(1, self.layers):
                layer, following = following.result(), pool.submit(self._layer, number)
                yield layer
            yield following.result()

    def _layer(self, number: int) -> Any:
        from onnxruntime_genai.models.loaders.base import QuantizedDecoderLayer, TensorModule

        layer, prefix = QuantizedDecoderLayer(number), f"{self.names.layers}.{number}."
        modules = sorted({name.rpartition(".")[0] for name in self.files if name.startswith(prefix)})
        if not modules:
            raise BadInput(f"layer {number} is missing", where=self.folder)
        for module in modules:
            *path, name = self.names.usual_path(module.removeprefix(prefix)).split(".")
            parent = layer
            for part in path:
                parent = getattr(parent, part)
            if "rotary_emb" in module:
                continue  # computed from the config
            tensors = {n.rpartition(".")[2]: self._read(n) for n in self.files if n.rpartition(".")[0] == module}
            if tensors.get("qweight") is None and tensors["weight"].ndim == 1:
                setattr(parent, name, TensorModule(tensors["weight"], tensors.get("bias")))
                continue
            self._place(parent, projection(name), self._projection(module, tensors))
        return layer

    def _place(self, parent: Any, name: str, projection: Any) -> None:
        """Set a projection, a fused one as its parts: that is what the builder wants to see."""
        if name not in FUSED:
            setattr(parent, name, projection)
            return
        outputs = len(projection.weight if isinstance(projection, FloatProjection) else projection.qweight)
        parts = FUSED[name]
        sizes = self.qkv if name == "qkv_proj" else [outputs // len(parts)] * len(parts)
        start = 0
        for part, size in zip(parts, sizes, strict=True):
            setattr(parent, part, projection.rows(slice(start, start + size)))
            start += size

    def _projection(self, module: str, tensors: dict[str, Tensor]) -> Any:
        if "qweight" not in tensors:
            return FloatProjection(tensors["weight"], tensors.get("bias"))
        own = (self.quantization.get("overrides") or {}).get(module) or {}
        bits = int(own.get("bits", self.quantization.get("bits", 4)))
        try:
            found = QUANT_METHODS[self.quantization["quant_method"]](tensors, bits)
        except (KeyError, RuntimeError, ValueError) as e:
            raise BadInput(f"{module}: tensors missing or of a wrong shape ({e})", where=self.folder) from e
        try:
            return found.signed() if self.signed else found
        except ValueError as e:
            raise BadInput(f"TensorRT takes 4-bit weights without zero points only, and {module} has {e}",
                           where=self.folder, hint="phicli quantize --symmetric") from e

    def _head(self, plain: Any) -> Any:
        head = self.names.head
        tensors = {last(n): self._read(n) for n in self.files if n.startswith(f"{head}.")}
        if "qweight" in tensors:
            return self._projection(head, tensors)
        return plain(tensors["weight"], tensors.get("bias"))

    def _maybe(self, name: str) -> Tensor | None:
        return self._read(name) if name in self.files else None

    def _read(self, name: str) -> Tensor:
        if name not in self.files:
            raise BadInput(f"{name} is missing", where=self.folder)
        with safe_open(self.files[name], "pt") as file:
            tensor = file.get_tensor(name)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BadInput(f"NaN or infinity in {name}", where=self.folder, hint="phicli quantize --force")
        return tensor


def float_projections(folder: Path) -> list[str]:
    """Names in the builder's graph of the linears that a quantized checkpoint leaves in float."""
    names, known = set(), architecture_of(read_config(folder)["model_type"])
    for path in weight_files(folder):
        for name, entry in check_safetensors(path).items():
            found = in_layer(name.removesuffix(".weight")) if name.startswith(f"{known.layers}.") else None
            if found and name.endswith(".weight") and len(entry["shape"]) == 2:
                block, _, module = known.usual_path(found[1]).rpartition(".")
                if block not in ("self_attn", "mlp"):
                    continue
                block, module = block.replace("self_attn", "attn"), projection(module)
                fused = [f for f, parts in FUSED.items() if module in parts and f == "qkv_proj"]
                for graph_name in (module, *FUSED.get(module, ()), *fused):
                    names.add(f"/model/layers.{found[0]}/{block}/{graph_name}/MatMul")
    return sorted(names)


@contextlib.contextmanager
def streamed_loading(data: ExternalData) -> Iterator[None]:
    """While the block runs, the builder loads AWQ and Olive checkpoints through `StreamedCheckpoint`.

    Also, it forgets a layer's k and v before the next one. genai 0.18 does not: where q, k and v are three products in
    one layer (left in float) and one in the next, it gives the next one's attention the k and v of the layer before.

    data: takes the tensors of what is built, but for those that the builder will have quantized.
    """
    from onnxruntime_genai.models import builder

    def load_weights(self: Any, folder: str) -> Any:
        if self.quant_type not in QUANT_METHODS or self.moe_attrs["num_experts"] > 0:
            return original(self, folder)

        def to_be_quantized(value: Any) -> bool:
            return any(use.node.op_type in self.quant_attrs["op_types_to_quantize"]
                       and use.node.name not in self.quant_attrs["nodes_to_exclude"] for use in value.uses())

        def done() -> None:
            data.take(self.model.graph, keep=to_be_quantized)

        q, kv = self.num_attn_heads * self.head_size, self.num_kv_heads * self.head_size
        return StreamedCheckpoint(Path(folder), self.num_layers, (q, kv, kv), done, self.ep == TENSORRT)

    def make_attention_input_proj(self: Any, *args: Any, **keywords: Any) -> None:
        self.attention_attrs |= {"k_path": "", "v_path": ""}
        original_inputs(self, *args, **keywords)

    with (replaced(builder.Model, "load_weights", load_weights) as original,
          replaced(builder.Model, "make_attention_input_proj", make_attention_input_proj) as original_inputs):
        yield
