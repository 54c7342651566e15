"""A quantized checkpoint trained to say what the original says: its integers and scales, from end to end.

The loss is the KL divergence of the next token's distribution from the original's (Hinton et al., 2015,
arXiv:1503.02531), as in quantization-aware distillation without labels (LLM-QAT, Liu et al., 2023, arXiv:2305.17888).
The data are the calibration tokens, with a share replaced at random in every step: what the original says of a text
is a lesson whether or not the text makes sense, and without the noise a small calibration is learned by heart.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from phicli.checkpoints.loading import load_base
from phicli.hub.models import weight_files
from phicli.progress import Progress
from phicli.quantization.shards import save_tensors
from phicli.quantization.trainable import TrainableLinear, TrainableNorm
from phicli.resources.estimates import DISTILL_TOKENS

if TYPE_CHECKING:
    from phicli.quantization.quantize import LayerJob

REPLACED = 0.3  # of the tokens
WARM_UP = 10  # steps
HELD_OUT = 1 / 16  # of the sequences, at least one: they tell whether it helped


def distill(job: "LayerJob", original: Path, folder: Path, tokens: Tensor, steps: int, progress: Progress
            ) -> tuple[float, float]:
    """Train the integers and scales of an AWQ checkpoint, in place.

    Args:
        job: that made the checkpoint, with the plans of all layers. original: the unquantized model. folder: the
            checkpoint, which stays as it is if the training does not help.
        tokens: int64 (rows, length), the calibration. steps: of `DISTILL_TOKENS` tokens.

    Returns:
        the checkpoint's KL divergence on sequences held out, with nothing replaced, before and after.
    """
    device = job.model.device
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    teacher, student = (load_base(path, device.type, dtype) for path in (original, folder))
    parts = make_trainable(student, job)
    student.enable_input_require_grads()
    rows = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))].to(device)
    held = math.ceil(len(rows) * HELD_OUT)
    held_out, rows = rows[:held], rows[held:] if len(rows) > 1 else rows
    before = divergence(student, teacher, held_out)
    with progress.task("distill", total=steps, unit="steps") as task, torch.enable_grad():
        for step, batch in enumerate(batches(rows, steps)):
            pace = min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for part in parts.values():
                part.pace = pace
            with torch.no_grad():
                wanted = teacher(batch, use_cache=False).logits
            loss = Divergence.apply(student(batch, use_cache=False).logits, wanted)
            loss.backward()
            task.advance(KL=f"{loss.item() / batch.numel():.4f}")
    after = divergence(student, teacher, held_out)
    if not after < before:  # a loss that is NaN too
        progress.warn(f"distilling did not help (KL {before:.4f}, after it {after:.4f}): the weights stay as they were")
        return before, before
    replace(folder, {name + kind: t.cpu() for name, part in parts.items() for kind, t in part.stored().items()})
    return before, after


def make_trainable(student: nn.Module, job: "LayerJob") -> dict[str, TrainableLinear | TrainableNorm]:
    """Make the quantized linears and the norms trainable; what linears start from are the original's scaled weights."""
    parts: dict[str, TrainableLinear | TrainableNorm] = {}
    for index, layer in job.model.in_turn():
        work = job.work(index, layer)
        work.apply_scales(job.plans[work.prefix].to(job.model.device), job.scalings, job.model.config)
        for name in work.names:
            parent, _, child = (work.prefix + name).rpartition(".")
            packed: Any = student.get_submodule(work.prefix + name)
            parts[work.prefix + name] = linear = TrainableLinear(packed, work.linear(name).weight)
            setattr(student.get_submodule(parent), child, linear)
    for name, weight in student.named_parameters():
        if name.endswith("norm.weight"):
            parts[name.removesuffix(".weight")] = TrainableNorm(weight)
    return parts


def batches(rows: Tensor, steps: int) -> Iterator[Tensor]:
    """Rows in random order, again and again, with tokens replaced by others of the same text."""
    generator = torch.Generator().manual_seed(0)
    size, order = max(1, DISTILL_TOKENS // rows.shape[1]), torch.empty(0, dtype=torch.long)
    every = rows.flatten()
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        batch, order = rows[order[:size].to(rows.device)], order[size:]
        other = every[torch.randint(len(every), batch.shape, generator=generator).to(rows.device)]
        yield torch.where((torch.rand(batch.shape, generator=generator) < REPLACED).to(rows.device), other, batch)


class Divergence(torch.autograd.Function):
    """The KL divergence of logits from those wanted, summed over tokens; one row at a time is in float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        """logits, wanted: floating (rows, length, vocabulary)."""
        total = torch.zeros((), device=logits.device)
        gradient = torch.empty_like(logits)
        for i in range(len(logits)):
            ours, theirs = logits[i].float().log_softmax(-1), wanted[i].float().log_softmax(-1)
            total += (theirs.exp() * (theirs - ours)).sum()
            gradient[i] = ours.exp() - theirs.exp()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * outer[0], None


@torch.no_grad()
def divergence(student: Any, teacher: Any, rows: Tensor) -> float:
    """Mean over tokens, in nats."""
    total = sum(Divergence.apply(student(row[None]).logits, teacher(row[None]).logits) for row in rows)
    return float(total) / rows.numel()


def replace(folder: Path, new: dict[str, Tensor]) -> None:
    """Put tensors into a checkpoint's files, in place of those of the same names."""
    from safetensors.torch import load_file

    for file in weight_files(folder):
        tensors = load_file(file)
        beside = file.with_suffix(".new")
        save_tensors({name: new.get(name, tensor) for name, tensor in tensors.items()}, beside, {"format": "pt"})
        beside.replace(file)
