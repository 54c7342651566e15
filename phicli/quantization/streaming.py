"""A model that is never whole in memory: its layers come from safetensors one by one."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phicli.architectures import Architecture, architecture_of, last
from phicli.artifacts.tensors import check_safetensors
from phicli.checkpoints.skeleton import check_names
from phicli.errors import BadInput
from phicli.hub.models import weight_files
from phicli.workflow.wording import worded

ROWS_AT_ONCE = 16  # of tokens, that are embedded together


class Weights:
    """The tensors of a model folder by name, read from disk when asked for."""

    def __init__(self, folder: Path):
        headers = {path: check_safetensors(path) for path in weight_files(folder)}
        self.file_of = {name: path for path, header in headers.items() for name in header}
        self.shapes = {name: entry["shape"] for header in headers.values() for name, entry in header.items()}
        self.dtypes = {name: entry["dtype"] for header in headers.values() for name, entry in header.items()}
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

    def first_rows(self, rows: int) -> Iterator[tuple[str, bytes]]:
        """Of each tensor, by name: its dtype, shape and first rows, as bytes."""
        from safetensors import safe_open

        parts = {}
        for path in sorted(set(self.file_of.values())):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    part = file.get_slice(name)
                    about = f"{part.get_dtype()} {part.get_shape()}".encode()
                    content = part[:rows] if part.get_shape() else file.get_tensor(name)
                    parts[name] = about + content.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield from sorted(parts.items())

    def _file(self, name: str) -> Path:
        if name not in self.file_of:
            raise BadInput(f"no tensor {name}: the weights do not fit config.json", where=self.folder)
        return self.file_of[name]


class LayeredModel:
    """A causal language model of transformers whose decoder layers are on no device until they are loaded.

    Raises:
        BadInput: transformers does not know the architecture, its layers are not where phicli looks for them, or the
            checkpoint has other tensors.
    """

    def __init__(self, folder: Path, device: torch.device):
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        self.weights, self.device = Weights(folder), device
        self.copies = torch.cuda.Stream() if device.type == "cuda" else None
        with worded("transformers cannot build this model", folder):
            self.config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with init_empty_weights(include_buffers=False), no_init_weights():
                self.model = AutoModelForCausalLM.from_config(self.config, trust_remote_code=False)
        self.model.eval()
        self.architecture = architecture_of(self.config.model_type)
        self.layers, self.prefix = _decoder_layers(self.model, self.architecture, folder)
        check_names(self.model, self.weights.shapes, folder)
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
        parts = last(self.architecture.layers), last(self.architecture.norm)
        whole = [getattr(base, part) for part in parts]
        setattr(base, parts[0], nn.ModuleList(recorders))
        embedding: nn.Module = self.model.get_input_embeddings()
        name = next(n for n, m in self.model.named_modules() if m is embedding)
        self._fill(embedding, name + ".")
        setattr(base, parts[1], nn.Identity())
        try:
            base.to(self.device)
            tokens = tokens.to(self.device)
            first = self._embed(base, tokens[:1])
            keywords = [recorder.keywords for recorder in recorders]  # of one row, which fit any number of rows
            hidden = [first, *(self._embed(base, part) for part in tokens[1:].split(ROWS_AT_ONCE) if len(part))]
        finally:
            for part, module in zip(parts, whole, strict=True):
                setattr(base, part, module)
        embedding.to("meta")
        return list(torch.cat(hidden).split(1)), keywords

    def _embed(self, base: nn.Module, rows: Tensor) -> Tensor:
        return base(input_ids=rows, use_cache=False).last_hidden_state

    def prefix_of(self, index: int) -> str:
        """What the names of a layer's tensors begin with."""
        return f"{self.prefix}{index}."

    def in_turn(self) -> Generator[tuple[int, nn.Module], None, None]:
        """Every layer with its weights, read while the one before it is worked on, and dropped after.

        Raises:
            BadInput: NaN or infinity in a weight.
        """
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._read, 0)
            for index, layer in enumerate(self.layers):
                state = coming.result()
                if index + 1 < len(self.layers):
                    coming = reader.submit(self._read, index + 1)
                self._put(layer, state)
                yield index, layer
                layer.to("meta")

    def load_layer(self, index: int) -> nn.Module:
        """Layer `index` with its weights, in the compute dtype, on the device. Raises BadInput for NaN or infinity."""
        self._put(self.layers[index], self._read(index))
        return self.layers[index]

    def _read(self, index: int) -> dict[str, Tensor]:
        return self._state(self.layers[index], self.prefix_of(index))

    def _fill(self, module: nn.Module, prefix: str) -> None:
        self._put(module, self._state(module, prefix))

    def _state(self, module: nn.Module, prefix: str) -> dict[str, Tensor]:
        """The module's tensors on the device, complete when this returns. On CUDA beside what the GPU is doing."""
        state, finite = {}, {}
        with self._beside():
            for name, tensor in self.weights.load([prefix + name for name in module.state_dict()]):
                if self.device.type == "cuda":
                    tensor = tensor.pin_memory().to(self.device, non_blocking=True)
                if tensor.is_floating_point():
                    finite[name] = tensor.isfinite().all()
                    tensor = tensor.to(self.dtype)
                state[name.removeprefix(prefix)] = tensor
            check_all(finite)
            if self.copies is not None:
                self.copies.synchronize()
        return state

    def _beside(self) -> AbstractContextManager:
        return torch.cuda.stream(self.copies) if self.copies is not None else nullcontext()

    def _put(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        if self.copies is not None:
            for tensor in state.values():  # their memory is not the copying stream's again before the work is done
                tensor.record_stream(torch.cuda.current_stream())
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


def _decoder_layers(model: Any, known: Architecture, folder: Path) -> tuple[nn.ModuleList, str]:
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if (isinstance(module, nn.ModuleList) and len(module) == count and last(name) == last(known.layers)
                and isinstance(getattr(model.get_decoder(), last(known.norm), None), nn.Module)):
            return module, name + "."
    raise BadInput(f"the layers of {type(model).__name__} are built in a way that phicli does not know", where=folder,
                   hint="--algorithm rtn or gptq, or a Llama-like model: Phi-3, Llama, Mistral, Qwen, Gemma")


def check_all(finite: dict[str, Tensor]) -> None:
    """Raise BadInput for the first name whose flag, a bool tensor (), is false. Waits for the device once."""
    flags = torch.stack([*finite.values()]).tolist() if finite else []
    for name, good in zip(finite, flags, strict=True):
        if not good:
            raise BadInput(f"NaN or infinity in {name}: the model is damaged, or float16 is too narrow for it",
                           hint="its files fetched again, or the model in bfloat16 or float32")
