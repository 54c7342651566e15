"""Which device torch computes on, and what memory it has."""

import os
from pathlib import Path

from phicli.errors import Missing

# What a model can be built for -> the name of onnxruntime's execution provider for it.
EXECUTION_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "dml": "DmlExecutionProvider",
                       "webgpu": "WebGpuExecutionProvider"}
# Limit, use, and statistics of a container's memory: control groups of version 2, then 1.
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def choose_device(wanted: str) -> str:
    """"cuda" or "cpu" for "auto", "cuda" or "cpu".

    Raises:
        Missing: CUDA asked for and not usable.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        built = "no NVIDIA GPU or driver found" if torch.version.cuda else "this torch is built without CUDA"
        raise Missing(f"CUDA is not usable: {built}", hint="--device cpu, or install torch's CUDA build")
    return "cpu"


def usable_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may keep busy: physical ones, as far as its affinity and its container's share allow.

    OMP_NUM_THREADS, where it is set, says so instead.
    """
    if (wanted := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(wanted):
        return int(wanted)
    import psutil

    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    try:
        quota, period = map(int, (root / "cpu.max").read_text().split())
        cores = min(cores, -(-quota // period))
    except (OSError, ValueError):  # no control groups of version 2, or "max": no limit
        pass
    return max(1, cores)


def available_memory(device: str) -> int:
    """Bytes that can be allocated on "cuda" or "cpu" now."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    import psutil

    there = psutil.virtual_memory().available
    limit = container_limit()
    return min(there, max(0, limit[0] - limit[1])) if limit else there


def total_memory() -> int:
    """Bytes of memory that this process could get at most: the machine's, or the container's limit."""
    import psutil

    total, limit = psutil.virtual_memory().total, container_limit()
    return min(total, limit[0]) if limit else total


def container_limit(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """A container's limit of memory and how much of it is used, file cache that can go not counted; None without."""
    for limit, use, statistics, cache in CGROUPS:
        try:
            most, used = int((root / limit).read_text()), int((root / use).read_text())  # "max": no limit
            counts = dict(line.split() for line in (root / statistics).read_text().splitlines())
            return most, used - int(counts.get(cache, 0))
        except (OSError, ValueError):
            continue
    return None
