"""Memory that ran out after all: a message that names what takes less of it."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from phicli.errors import Missing, PhicliError

SIGNS = ("out of memory", "failed to allocate memory", "can't allocate memory", "cannot allocate memory", "bad_alloc",
         "alloc_failed")  # of CUDA, onnxruntime, torch, the system, C++, cuBLAS
TELLING = re.compile(r"tried to allocate (?:\d+ bytes|.*? is free)|failed to allocate memory[^.\n]*", re.IGNORECASE)
OTHERS = "end other programs on the GPU (nvidia-smi lists them)"
LESS = {
    "quantize": f"fewer --samples, a shorter --seq-len, --device cpu, or {OTHERS}",
    "finetune": f"a smaller --lora-r or --seq-len, --device cpu, or {OTHERS}",
    "optimize": "end other programs, or --device cpu",
    "evaluate": f"a shorter --seq-len, --device cpu, or {OTHERS}",
    "chat": f"--device cpu where the GPU's memory is full, or {OTHERS}",
}


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory, the host's or a GPU's, could not be allocated."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in SIGNS)


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


def shortage(error: BaseException, step: str | None = None, where: Path | None = None) -> Missing:
    """The error that tells people of it."""
    telling = TELLING.search(str(error))
    said = telling[0] if telling else str(error).partition("\n")[0]
    hint = LESS[step] if step else f"--device cpu, or {OTHERS}"
    return Missing(f"not enough memory: {said}", where=where, hint=hint)
