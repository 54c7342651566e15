"""AWQ from a Hugging Face folder to an AWQ checkpoint, layer by layer."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from phicli.awq.architectures import ARCHITECTURES
from phicli.awq.grid import GridShape
from phicli.awq.layer import LayerWork, forward
from phicli.awq.packing import quantization_config
from phicli.awq.phases import Phases
from phicli.awq.shards import ShardWriter
from phicli.awq.streaming import LayeredModel
from phicli.progress import SILENT, Progress

COPIED = ("*.json", "*.jinja", "*.txt", "tokenizer.model")  # beside the weights, all but config.json and indexes
BATCH_TOKENS = {"cuda": 8192, "cpu": 4096}  # that go through a layer at a time


@dataclass
class Report:
    """How it went.

    layer_errors: relative output error of each layer's linears. gpu_bytes: peak GPU memory (0 on a CPU).
    phase_seconds: what the time went to.
    """

    layer_errors: list[float] = field(default_factory=list)
    gpu_bytes: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def quantize_checkpoint(
    folder: Path,
    output: Path,
    tokens: Tensor,
    *,
    shape: GridShape,
    rounding: str = "gptq",
    device: str = "cpu",
    skip: tuple[str, ...] = (),
    progress: Progress = SILENT,
) -> Report:
    """Quantize the linears of all decoder layers; embeddings, norms and lm_head stay float16.

    Each layer is calibrated on the outputs of the layers quantized before it, so that it can make up for their error.

    Args:
        folder: unquantized model. output: folder to write into.
        tokens: int64 (rows, length), the calibration.
        rounding: "gptq" or "nearest". skip: parts of module names to leave in float.

    Raises:
        BadInput: NaN or infinity in weights or activations (named by layer), or an unsupported architecture.
    """
    report, place = Report(), torch.device(device)
    phase = Phases(place)
    with full_precision(), ShardWriter(output) as writer:
        with phase("start"):
            model = LayeredModel(folder, place)
            scalings = ARCHITECTURES.get(model.config.model_type)
            if scalings is None:
                progress.warn(f"architecture '{model.config.model_type}': which weights share scales is not known, "
                              "so ranges are clipped and rounded without AWQ's scales")
            hidden, keywords = model.start(tokens)
            hidden = _batches(hidden, BATCH_TOKENS[place.type] // tokens.shape[1])
            for name, tensor in model.weights.load(model.outer_names()):
                writer.add(name, tensor)
        layers = model.in_turn()
        with progress.task("quantize", total=len(model.layers), unit="layers") as task:
            for _ in model.layers:
                with phase("load"):
                    index, layer = next(layers)
                work = LayerWork(layer, f"{model.prefix}{index}.", shape, rounding, skip, phase)
                work.collect(hidden, keywords[index])
                work.scale(scalings or (), model.config)
                tensors, error = work.quantize()
                if index + 1 < len(model.layers):
                    with phase("forward"):
                        hidden = [forward(layer, x, keywords[index]) for x in hidden]
                with phase("write"):
                    for name, tensor in tensors.items():
                        writer.add(name, tensor)
                report.layer_errors.append(float(error))
                task.advance(error=f"{report.layer_errors[-1]:.2%}")
        layers.close()
        with phase("write"):
            writer.finish()
    save_metadata(folder, output, quantization_config(shape.group_size, sorted({"lm_head", *skip})))
    report.gpu_bytes = torch.cuda.max_memory_allocated() if place.type == "cuda" else 0
    report.phase_seconds = phase.seconds()
    return report


def _batches(rows: list[Tensor], size: int) -> list[Tensor]:
    size = max(1, size)
    return [torch.cat(rows[i : i + size]) for i in range(0, len(rows), size)]


class full_precision:
    """On CUDA, float32 products of float16 values in TF32: exact products, float32 sums, several times the speed."""

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")

    def __exit__(self, *exc: object) -> None:
        torch.set_float32_matmul_precision(self.before)


def save_metadata(folder: Path, output: Path, quantization: dict) -> None:
    """Copy tokenizer and settings files, and write config.json with what the quantization is."""
    for pattern in COPIED:
        for path in folder.glob(pattern):
            if path.name not in ("config.json", "phicli.json") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, output / path.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization
    config.pop("torch_dtype", None)
    config["dtype"] = config["torch_dtype"] = "float16"  # transformers reads the first, AutoAWQ the second
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
