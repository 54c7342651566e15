"""What each step of the lab needs with a model, and on which machines there is that much."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from phicli.config.layers import Settings
from phicli.config.steps import FinetuneConfig
from phicli.dataset.formats import open_rows
from phicli.errors import PhicliError
from phicli.hub.datasets import find_sources
from phicli.resources import ModelSize, step_estimates
from phicli.resources.estimates import GB, ROW_TOKENS
from phicli.units import size

UNCERTAIN = 1.25  # an estimate must be over by this factor before it makes a light red
GPUS = (6, 8, 12, 16, 24, 80)  # GB
MACHINES = (4, 8, 16, 32, 64, 128, 256)  # GB of memory
COLUMNS = ("step", "disk", "memory", "CPU with", "GPU memory", "GPU of")
LOOKED_AT = 1000  # rows
CHARACTERS, LAYOUT = 3, 20  # of a row, with the names of its fields, for a token; tokens of a chat template


def longest_row(config: FinetuneConfig) -> int:
    """Tokens of the longest of the first rows of finetune's data, told from their letters; `ROW_TOKENS` where the data
    are not here."""
    longest = 0
    try:
        for source in find_sources(config.data, local=True):
            with open_rows(source.path) as lines:
                longest = max([longest, *(len(line.data) for line in islice(lines, LOOKED_AT))])
    except PhicliError:
        longest = 0
    return min(config.seq_len, longest // CHARACTERS + LAYOUT if longest else ROW_TOKENS)


def needs(known: ModelSize, before: dict[str, int], settings: Settings, row_tokens: int) -> dict[str, Any]:
    """Bytes for each step on a CPU and with a GPU, and the smallest machines that have them; for --json.

    before: what has to be done before the first step -> bytes that it brings.
    """
    steps = {}
    on_gpu = step_estimates(known, "cuda", settings.resolve, row_tokens)
    for step, cpu in step_estimates(known, "cpu", settings.resolve, row_tokens).items():
        gpu = on_gpu[step]
        steps[step] = {
            "disk": round(max(cpu.disk, gpu.disk)), "memory": round(cpu.memory),
            "cpu_with_gb": _smallest(cpu.memory, MACHINES), "gpu_memory": round(gpu.gpu),
            "memory_beside_gpu": round(gpu.memory), "gpu_of_gb": _smallest(gpu.gpu, GPUS)}
    can = {str(gpu): [step for step, one in steps.items() if one["gpu_of_gb"] and one["gpu_of_gb"] <= gpu]
           for gpu in GPUS}
    batch = settings.resolve(FinetuneConfig).batch_size
    return {"before": before, "steps": steps, "gpus": can, "batch_size": batch, "row_tokens": row_tokens,
            "source": known.source}


def rows_of(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of a table for people, below `COLUMNS`."""
    rows: list[tuple[str, ...]] = [(what, size(count), "", "", "", "") for what, count in found["before"].items()]
    for step, one in found["steps"].items():
        rows.append((step, size(one["disk"]) if one["disk"] else "", size(one["memory"]),
                     _machine(one["cpu_with_gb"], MACHINES), size(one["gpu_memory"]) if one["gpu_memory"] else "",
                     _machine(one["gpu_of_gb"], GPUS) if one["gpu_memory"] else "any"))
    return rows


def _smallest(need: float, machines: Sequence[int]) -> int | None:
    """The first that has what is needed, with room for what an estimate may be wrong by."""
    return next((one for one in machines if need * UNCERTAIN <= one * GB), None)


def _machine(found: int | None, machines: Sequence[int]) -> str:
    return f"{found} GB" if found else f"> {machines[-1]} GB"
