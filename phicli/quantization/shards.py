"""Results leave in shards of safetensors, taken from the device, checked and written in the background."""

import json
import os
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from phicli.quantization.streaming import check_all

SHARD_BYTES = 1 << 30  # of an output file, and so of what waits in memory
PENDING_BYTES = 1 << 28  # that wait, on the device, to be taken


class ShardWriter:
    """Writes tensors to safetensors shards and an index at the end. A thread in the background does the work,
    another brings finished files to the disk.

    Files are named as Hugging Face names them: model.safetensors, or model-00001-of-0000N.safetensors with an index.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES, dtype: torch.dtype | None = torch.float16):
        """dtype: of floating-point tensors in the files; None: their own."""
        self.folder, self.limit, self.dtype = folder, limit, dtype
        self.waiting: dict[str, Tensor] = {}
        self.waiting_bytes = self.total = 0
        self.shards: list[list[str]] = []
        self.writer, self.syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.pending: deque[tuple[Future, int]] = deque()
        self.copies: torch.cuda.Stream | None = None

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor, which must not be changed after.

        Raises:
            BadInput: a tensor taken so far overflows the files' dtype, or holds NaN.
        """
        ready = None
        if tensor.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
            self.copies = self.copies or torch.cuda.Stream()
        self.pending.append((self.writer.submit(self._take, name, tensor, ready), tensor.nbytes))
        self._settle(PENDING_BYTES)

    def _settle(self, allowed: int) -> None:
        """Wait until no more than `allowed` bytes are pending, and raise what went wrong with those that are not."""
        while self.pending and (self.pending[0][0].done() or sum(n for _, n in self.pending) > allowed):
            self.pending.popleft()[0].result()

    def _take(self, name: str, tensor: Tensor, ready: Any) -> None:
        with torch.cuda.stream(self.copies) if ready is not None else nullcontext():
            if ready is not None:
                torch.cuda.current_stream().wait_event(ready)
            if tensor.is_floating_point():
                tensor = tensor.to(self.dtype or tensor.dtype)
                check_all({f"{name} as {str(tensor.dtype).removeprefix('torch.')}": tensor.isfinite().all()})
            self.waiting[name] = tensor.cpu().contiguous()
        self.waiting_bytes += tensor.nbytes
        if self.waiting_bytes >= self.limit:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        part = self.folder / f"part-{len(self.shards)}.safetensors"
        save_tensors(self.waiting, part, {"format": "pt"})
        if os.name == "posix":  # elsewhere an open file cannot be renamed
            self.syncer.submit(_bring_to_disk, part.open("rb"))  # `file_hashes` wants it there, and would wait for it
        self.shards.append(list(self.waiting))
        self.total += self.waiting_bytes
        self.waiting, self.waiting_bytes = {}, 0

    def finish(self) -> int:
        """Write what is left and the index; returns the bytes of all tensors."""
        self._settle(0)
        self._flush()
        count = len(self.shards)
        single = {0: "model.safetensors"} if count == 1 else {}
        named = {i: single.get(i, f"model-{i + 1:05}-of-{count:05}.safetensors") for i in range(count)}
        for i, name in named.items():
            (self.folder / f"part-{i}.safetensors").rename(self.folder / name)
        if count > 1:
            where = {tensor: named[i] for i, names in enumerate(self.shards) for tensor in names}
            index = {"metadata": {"total_size": self.total}, "weight_map": where}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        return self.total

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self.writer.shutdown(cancel_futures=True)
        self.syncer.shutdown(wait=False)


def _bring_to_disk(file: BinaryIO) -> None:
    with file, suppress(OSError):  # a file system that cannot: no fault of the result
        os.fsync(file.fileno())


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file. Raises OSError where the system refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as e:  # carries the system's error as text only
        code = re.search(r"os error (\d+)", str(e))
        if code:
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from None
        raise
