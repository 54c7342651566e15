"""A merged model back in int4, so that it computes what its int4 base and the adapter did together.

Most of a merged weight is what the base's integers say, and the update is small beside a step of their grid: rounded to
the nearest integer it would be lost. So the base's grid is kept, whose values the base's own part meets exactly, and
GPTQ's feedback (arXiv:2210.17323) carries what rounding takes from one input channel to those after it.
"""

from pathlib import Path

import torch
from torch import Tensor

from phicli.checkpoints.awq import quantization_config
from phicli.checkpoints.linears import linear_shapes
from phicli.hub.models import read_config, read_headers
from phicli.progress import SILENT, Progress
from phicli.quantization.grid import GridShape
from phicli.quantization.groups import AWQ_SIZES, choose_group_size
from phicli.quantization.layer import forward
from phicli.quantization.merging import packed_linear
from phicli.quantization.phases import Phases
from phicli.quantization.plan import LayerPlan
from phicli.quantization.quantize import LayerJob, full_precision, quantize_checkpoint, save_metadata
from phicli.quantization.shards import ShardWriter
from phicli.quantization.streaming import LayeredModel, Weights


@torch.no_grad()
def requantize(merged: Path, base: Path, output: Path, tokens: Tensor, progress: Progress = SILENT) -> list[float]:
    """Write an AWQ checkpoint of a merged model.

    Without an int4 base, or where its integers are of other sizes than AWQ's, it is quantized as any model.

    Args:
        merged: in floating point. base: what the adapter was merged into. tokens: int64 (rows, length), calibration.

    Returns:
        the relative output error of each layer's linears.

    Raises:
        BadInput: NaN or infinity in weights or activations.
    """
    grids = Grids(base) if read_config(base).get("quantization_config") else None
    if grids is None or not grids.fits:
        size, _ = choose_group_size(read_headers(merged), None, (), True, merged)
        return quantize_checkpoint(merged, output, tokens, shape=GridShape(group_size=size),
                                   progress=progress).layer_errors
    errors = []
    with full_precision(), ShardWriter(output) as writer:
        model = LayeredModel(merged, torch.device("cpu"))
        job = LayerJob(model, grids.shape, "gptq", grids.floating, Phases(model.device), False, progress)
        job.start(tokens)
        for name, tensor in model.weights.load(model.outer_names()):
            writer.add(name, tensor)
        with progress.task("round", len(model.layers), "layers") as task:
            for index, layer in model.in_turn():
                work = job.work(index, layer)
                work.collect(job.hidden, job.keywords[index])
                plan = LayerPlan(grids={name: grids.of(work.prefix + name) for name in work.names})
                tensors, error = work.round(plan, "gptq")
                for name, tensor in tensors.items():
                    writer.add(name, tensor)
                errors.append(float(error) if error is not None else 0.0)
                task.advance(1, error=f"{errors[-1]:.2%}")
                job.hidden = [forward(layer, x, job.keywords[index]) for x in job.hidden]
        writer.finish()
    save_metadata(merged, output, quantization_config(grids.shape.group_size, grids.skipped))
    return errors


class Grids:
    """Scales and zero points of an int4 checkpoint's linears.

    fits: whether AWQ's format can have them. floating: full names of the linears of layers that are not packed.
    """

    def __init__(self, folder: Path):
        self.weights, self.shapes = Weights(folder), linear_shapes(folder)
        packed = [name.removesuffix(".qweight") for name in self.weights.names() if name.endswith(".qweight")]
        first = packed_linear(packed[0], self.weights, self.shapes)
        self.shape = GridShape(first.bits, first.in_features // first.scales.shape[1])
        self.fits = first.bits == 4 and self.shape.group_size in AWQ_SIZES
        self.floating = tuple(name.removesuffix(".weight") for name, shape in self.weights.shapes.items()
                              if name.endswith(".weight") and len(shape) == 2)
        about = read_config(folder)["quantization_config"]
        self.skipped = list(about.get("modules_to_not_convert") or ["lm_head"])

    def of(self, module: str) -> tuple[Tensor, Tensor]:
        """Scale and zero point, float32 (out, groups)."""
        linear = packed_linear(module, self.weights, self.shapes)
        return linear.scales.float(), linear.qzeros.float()
