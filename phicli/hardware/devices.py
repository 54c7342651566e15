"""Which device torch computes on, and what memory it has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phicli.errors import Missing, UsageError
from phicli.units import size

# What a model can be built for -> the name of onnxruntime's execution provider for it.
EXECUTION_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "dml": "DmlExecutionProvider",
                       "webgpu": "WebGpuExecutionProvider", "tensorrt": "NvTensorRTRTXExecutionProvider",
                       "openvino": "OpenVINOExecutionProvider"}
MOST_GPUS = 1000  # of one machine, that anybody could mean
WIDE = 512  # hidden size from which a CPU computes in bfloat16; models below are quick in float32
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


def cpu_takes_bfloat16(hidden: int) -> bool:
    """Whether a CPU computes a model of this hidden size in bfloat16: where it multiplies that by instructions of its
    own, AVX-512 BF16 (twice float32's speed on an AMD EPYC) or AMX (not measured).
    """
    import torch

    told: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return hidden >= WIDE and bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def check_gpus(wanted: str, device: str) -> None:
    """Raise UsageError unless `wanted` is "1", "2", … or "all", and 1 where the device is no GPU."""
    if wanted != "all" and not (wanted.isdecimal() and 0 < int(wanted) < MOST_GPUS):
        raise UsageError(f"a number of GPUs, or all, not {wanted}", where="--gpus")
    if wanted != "1" and device not in ("auto", "cuda"):
        raise UsageError(f"goes with GPUs, not with --device {device}", where="--gpus")


def count_gpus(wanted: str, device: str) -> int:
    """How many GPUs "1", "2", … or "all" are.

    Raises:
        UsageError: as `check_gpus`. Missing: fewer are there.
    """
    check_gpus(wanted, device)
    if wanted == "1":
        return 1
    import torch

    there = torch.cuda.device_count()
    if not there or (wanted != "all" and int(wanted) > there):
        raise Missing(f"{there} GPUs that torch can use", where=f"--gpus {wanted}",
                      hint=f"--gpus {there or 1}", also=["phicli doctor --device cuda"])
    return there if wanted == "all" else int(wanted)


def shards(weights: int, gpus: int, wanted: bool | None) -> bool:
    """Whether several GPUs hold a model together, each a part of it: if that is wanted, or where one of them has less
    memory than the weights take.

    Raises:
        Missing: they do not hold it so either, or are not to.
    """
    import torch

    has = min((torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())),
              default=None)
    if has is None or has > weights:
        return bool(wanted)
    if wanted is False:
        raise Missing(f"each GPU holds the whole model, {size(weights)}, and one of them has {size(has)}",
                      where="--no-shard", hint="--shard, or train on its int4 form: phicli quantize")
    if has <= weights // gpus:
        raise Missing(f"each of {gpus} GPUs would hold {size(weights // gpus)} of the model, and one of them has "
                      f"{size(has)}", where="--gpus", hint="more GPUs, or train on its int4 form: phicli quantize")
    return True


def environments(count: int, device: str) -> list[dict[str, str]]:
    """What `count` processes find in their environment, so that each computes on a GPU of its own and some cores."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = shown.split(",") if shown else [str(number) for number in range(count)]
    cores = str(max(1, usable_cores() // count))
    return [{"OMP_NUM_THREADS": cores} | ({} if device == "cpu" else {"CUDA_VISIBLE_DEVICES": gpus[number]})
            for number in range(count)]


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

        free, total = torch.cuda.mem_get_info()
        own = int(torch.cuda.get_per_process_memory_fraction() * total) - torch.cuda.memory_reserved()
        return max(0, min(free, own))
    import psutil

    there = psutil.virtual_memory().available
    limit = container_limit()
    return min(there, max(0, limit[0] - limit[1])) if limit else there


@contextmanager
def limited_memory(device: str, limit: float | None) -> Iterator[None]:
    """While the block runs, torch takes at most `limit` bytes of a GPU's memory, beside what CUDA itself takes."""
    if device != "cuda" or limit is None:
        yield
        return
    import torch

    before = torch.cuda.get_per_process_memory_fraction()
    torch.cuda.set_per_process_memory_fraction(min(before, limit / torch.cuda.mem_get_info()[1]))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before)


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
