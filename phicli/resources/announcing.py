"""Saying what a step needs and what there is, before it begins. Nothing is refused: these are estimates."""

import shutil
from pathlib import Path

from phicli.hardware.devices import available_memory
from phicli.progress import Progress
from phicli.resources.estimates import Estimate
from phicli.units import size


def announce(step: str, estimate: Estimate, target: Path, progress: Progress, gpu_free: int | None = None) -> None:
    """One line, "needs about X, has Y"; a warning where Y is less.

    Args:
        target: the folder that will be written. gpu_free: bytes of the GPU, where torch is not to be asked for them.

    Where there is room for what only makes it faster, the line says with how much it will run.
    """
    if gpu_free is None and estimate.gpu:
        gpu_free = available_memory("cuda")
    there = [("memory", estimate.memory, available_memory("cpu")),
             ("GPU memory", estimate.gpu, gpu_free or 0),
             ("disk", estimate.disk, free_disk(target))]
    wanted = [(what, bytes_, has) for what, bytes_, has in there if bytes_]
    computes = "GPU memory" if estimate.gpu else "memory"
    takes = {what: f", takes about {size(bytes_ + estimate.extra)}" for what, bytes_, has in wanted
             if what == computes and estimate.extra and has >= estimate.extra_from}
    text = ", ".join(f"{size(bytes_)} of {what} (has {size(has)}{takes.get(what, '')})" for what, bytes_, has in wanted)
    short = [what for what, bytes_, has in wanted if has < bytes_]
    if short:
        progress.warn(f"{step} needs about {text}: {' and '.join(short)} may not be enough")
    else:
        progress.note(f"{step} needs about {text}")


def free_disk(path: Path) -> int:
    """Bytes that can be written at a path that may not be there yet."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = Path(path).expanduser().absolute()
    return next(p for p in (path, *path.parents) if p.exists())
