"""Memory that ran out after all: a message that names what takes less of it."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from phicli.errors import Missing, PhicliError

HOST = ("can't allocate memory", "cannot allocate memory", "bad_alloc")  # as torch, the system and C++ say it
# As CUDA, onnxruntime, genai and cuBLAS say it; the second and third may be about the host, and mostly are not.
GPU = ("out of memory", "failed to allocate memory", "could not allocate", "alloc_failed")
TELLING = re.compile(r"tried to allocate (?:\d+ bytes|.*? is free)|failed to allocate memory[^.\n]*"
                     r"|could not allocate [\w -]+buffer", re.IGNORECASE)
LESS = {
    "quantize": ["fewer --samples", "a shorter --seq-len"],
    "finetune": ["a smaller --lora-r", "a shorter --seq-len"],
    "evaluate": ["a shorter --seq-len"],
}


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory, the host's or a GPU's, could not be allocated."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in HOST + GPU)


@contextlib.contextmanager
def within_memory(step: str, where: Path | None = None) -> Iterator[None]:
    """Turn an error of memory that ran out into Missing, whose hint names the settings of the step that take less."""
    try:
        yield
    except PhicliError:
        raise
    except Exception as e:
        if not ran_out(e):
            raise
        raise shortage(e, step, where) from e


def shortage(error: BaseException, step: str = "", where: Path | None = None) -> Missing:
    """The error that tells people of it."""
    text = str(error)
    told = (TELLING.findall(text) or text.splitlines() or [""])[0]
    ways = [*LESS.get(step, [])]
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in HOST):
        last = "end other programs"
    else:
        ways.append("--device cpu")
        last = "end other programs on the GPU (nvidia-smi lists them)"
    return Missing(f"not enough memory: {told}".rstrip(": "), where=where,
                   hint=", ".join([*ways, f"or {last}"]) if ways else last)
