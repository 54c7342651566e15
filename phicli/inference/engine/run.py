"""A run of a batch's session: its inputs and outputs for one shape, bound once."""

from typing import TYPE_CHECKING, Any

import numpy as np

from phicli.export.fused import ID
from phicli.inference.engine.graph import BEST, LAST, LENGTHS, LONGEST

if TYPE_CHECKING:
    from phicli.inference.engine.batch import Batch

PLAIN = -1  # a run that is no CUDA graph, as onnxruntime calls it
Shape = tuple[int, int, int, int]  # the arguments of a Run


class Run:
    """A session's inputs and outputs for one shape, at addresses that stay: a run only changes what lies there.

    Args:
        rows: of the batch. first: number of the slot of the first one. tokens: of each row. wanted: how many of them
            have logits.
    """

    def __init__(self, served: "Batch", rows: int, first: int, tokens: int, wanted: int):
        import onnxruntime

        self._binding = binding = served.session.io_binding()
        device, slots = served.memory.device, served.slots
        self._on_gpu: dict[str, tuple[Any, np.ndarray]] = {}
        self._sent: dict[str, bytes] = {}  # what lies there
        values: dict[str, np.ndarray] = {
            served.tokens: np.zeros((rows, tokens), np.int64), LENGTHS: np.zeros(rows, np.int32),
            LONGEST: np.zeros((), np.int32), LAST: np.arange(wanted), ID: np.zeros(rows, np.int64)}
        self.values = {name: value for name, value in values.items() if name in served.inputs}
        for name, value in self.values.items():
            if device == "cpu" or name in (LONGEST, ID):
                binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
            else:
                held = onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0)
                self._on_gpu[name] = held, value
                binding.bind_ortvalue_input(name, held)
        for cache, dtype, address in zip(served.caches, slots.dtypes, slots.addresses, strict=True):
            shape = [rows, cache.heads, slots.room, cache.size]
            place = address + first * int(np.prod(shape[1:])) * dtype.itemsize
            binding.bind_input(cache.past, device, 0, dtype, shape, place)
            binding.bind_output(cache.present, device, 0, dtype, shape, place)
        for name, (memory, matrix, value) in served.held.items():
            binding.bind_input(name, memory.device, 0, value.dtype, value.shape, memory.address(matrix))
        self.logits = np.zeros((rows, wanted, served.vocab_size), served.dtype)
        self.best = np.zeros((rows, wanted), np.int64)
        self._session, self._results = served.session, dict[str, Any]()
        for name, value in ((served.outputs[0], self.logits), (BEST, self.best)):
            if name not in served.outputs:
                continue
            if device == "cpu":
                binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
            else:
                held = onnxruntime.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype, device, 0)
                self._results[name] = held
                binding.bind_ortvalue_output(name, held)

    def run(self, fetch: bool, graph: int = PLAIN) -> None:
        """Fill `logits` (if they are to be fetched) and `best`, if the graph has it.

        graph: number of the CUDA graph that this run becomes, and is from then on: what lies in the CPU's memory was
            read when it was captured.
        """
        import onnxruntime

        for name, (held, value) in self._on_gpu.items():
            if (now := value.tobytes()) != self._sent.get(name):
                held.update_inplace(value)
                self._sent[name] = now
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        self._session.run_with_iobinding(self._binding, options)
        for name, held in self._results.items():
            if name == BEST:
                self.best[...] = held.numpy()
            elif fetch:
                self.logits[...] = held.numpy()
