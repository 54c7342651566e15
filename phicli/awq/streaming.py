"""A model that is never whole in memory: layers come from safetensors one by one, and results leave in shards."""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phicli.errors import BadInput
from phicli.models import check_safetensors, weight_files

SHARD_BYTES = 1 << 30  # of an output file, and so of what waits in memory


class Weights:
    """The tensors of a model folder by name, read from disk when asked for."""

    def __init__(self, folder: Path):
        self.file_of = {name: path for path in weight_files(folder) for name in check_safetensors(path)}
        self.folder = folder

    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self.file_of if name.startswith(prefix)]

    def load(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Raises BadInput for a name that is not there or a tensor with NaN or infinity in it."""
        from safetensors import safe_open

        for path in sorted({self._file(name) for name in names}):
            with safe_open(path, "pt") as file:
                for name in names:
                    if self.file_of[name] == path:
                        yield name, file.get_tensor(name)

    def _file(self, name: str) -> Path:
        if name not in self.file_of:
            raise BadInput(f"no tensor {name}: the weights do not fit config.json", where=self.folder)
        return self.file_of[name]


class LayeredModel:
    """A causal language model of transformers whose decoder layers are on no device until they are loaded.

    Raises:
        BadInput: transformers does not know the architecture, or finds no decoder layers in it.
    """

    def __init__(self, folder: Path, device: torch.device):
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM

        self.weights, self.device = Weights(folder), device
        try:
            self.config = AutoConfig.from_pretrained(folder)
            with init_empty_weights(include_buffers=False):
                self.model = AutoModelForCausalLM.from_config(self.config)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise BadInput(f"transformers cannot build this model: {e}", where=folder) from None
        self.model.eval()
        self.layers, self.prefix = _decoder_layers(self.model, folder)
        self.dtype = self._dtype()

    def _dtype(self) -> torch.dtype:
        """The checkpoint's, in which it was trained; float32 on a CPU, where half precision is emulated."""
        _, sample = next(self.weights.load(self.weights.names(self.prefix)[:1]))
        return torch.float32 if self.device.type == "cpu" else sample.dtype

    def outer_names(self) -> list[str]:
        """Names of the checkpoint's tensors that belong to no decoder layer."""
        return [name for name in self.weights.names() if not name.startswith(self.prefix)]

    @torch.no_grad()
    def start(self, tokens: Tensor) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """The inputs of the first layer, per row of tokens, and the keyword arguments each layer is called with.

        Args:
            tokens: int64 (rows, length).

        Returns:
            hidden states (1, length, hidden) in the compute dtype, one a row, and one dict a layer.
        """
        recorders = [_Recorder(layer) for layer in self.layers]
        base: Any = self.model.get_decoder()
        layers, base.layers = base.layers, nn.ModuleList(recorders)
        embedding: nn.Module = self.model.get_input_embeddings()
        name = next(n for n, m in self.model.named_modules() if m is embedding)
        self._fill(embedding, name + ".")
        norm = base.norm
        base.norm = nn.Identity()
        try:
            base.to(self.device)
            outputs = [self._embed(base, row) for row in tokens.to(self.device)]
        finally:
            base.layers, base.norm = layers, norm
        embedding.to("meta")
        return outputs, [recorder.keywords for recorder in recorders]

    def _embed(self, base: nn.Module, row: Tensor) -> Tensor:
        return base(input_ids=row[None], use_cache=False).last_hidden_state

    def load_layer(self, index: int) -> nn.Module:
        """Layer `index` with its weights, in the compute dtype, on the device. Raises BadInput for NaN or infinity."""
        self._fill(self.layers[index], f"{self.prefix}{index}.")
        return self.layers[index]

    def drop_layer(self, index: int) -> None:
        self.layers[index].to("meta")

    def _fill(self, module: nn.Module, prefix: str) -> None:
        wanted = [prefix + name for name in module.state_dict()]
        state = {}
        for name, tensor in self.weights.load(wanted):
            tensor = tensor.to(self.device)
            if tensor.is_floating_point():
                check_finite(tensor, name)
                tensor = tensor.to(self.dtype)
            state[name.removeprefix(prefix)] = tensor
        module.load_state_dict(state, assign=True)
        module.to(self.device)


class _Recorder(nn.Module):
    """Stands in for a decoder layer: passes the hidden states on and remembers how the layer would be called."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.keywords: dict[str, Any] = {}
        for name in ("attention_type", "layer_type"):  # which mask the model hands to this layer
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden_states: Tensor, *args: Any, **keywords: Any) -> Tensor:
        if args:
            raise BadInput("this architecture calls its layers in a way that is not supported")
        self.keywords = keywords
        return hidden_states


def _decoder_layers(model: Any, folder: Path) -> tuple[nn.ModuleList, str]:
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and name.endswith("layers"):
            return module, name + "."
    raise BadInput(f"no decoder layers found in {type(model).__name__}", where=folder)


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise BadInput if the tensor holds NaN or infinity."""
    if not bool(tensor.isfinite().all()):
        raise BadInput(f"NaN or infinity in {what}: the model is damaged, or float16 is too narrow for it")


class ShardWriter:
    """Writes tensors to safetensors shards in the background and an index at the end.

    Files are named as Hugging Face names them: model.safetensors, or model-00001-of-0000N.safetensors with an index.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES):
        self.folder, self.limit = folder, limit
        self.waiting: dict[str, Tensor] = {}
        self.shards: list[list[str]] = []
        self.total = 0
        self.writer = ThreadPoolExecutor(1)
        self.pending: list[Future] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor; float tensors are stored as float16. Raises BadInput where that overflows."""
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float16)
            check_finite(tensor, f"{name} as float16")
        self.waiting[name] = tensor.cpu().contiguous()
        if sum(t.nbytes for t in self.waiting.values()) >= self.limit:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        for done in self.pending:
            done.result()  # one shard is written while the next is gathered, not more
        tensors, self.waiting = self.waiting, {}
        self.total += sum(t.nbytes for t in tensors.values())
        path = self.folder / f"part-{len(self.shards)}.safetensors"
        self.shards.append(list(tensors))
        self.pending = [self.writer.submit(_save, tensors, path)]

    def finish(self) -> int:
        """Write what is left and the index; returns the bytes of all tensors."""
        self._flush()
        for done in self.pending:
            done.result()
        count = len(self.shards)
        single = {0: "model.safetensors"} if count == 1 else {}
        named = {i: single.get(i, f"model-{i + 1:05}-of-{count:05}.safetensors") for i in range(count)}
        for i, name in named.items():
            (self.folder / f"part-{i}.safetensors").rename(self.folder / name)
        if count > 1:
            where = {tensor: named[i] for i, names in enumerate(self.shards) for tensor in names}
            index = {"metadata": {"total_size": self.total}, "weight_map": where}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        return self.total

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self.writer.shutdown()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as e:  # carries the system's error as text only
        code = re.search(r"os error (\d+)", str(e))
        if code:
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from None
        raise
