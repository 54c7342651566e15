"""Memory for keys and values, on a CPU or a GPU: all in which these two differ for a batch."""

import ctypes
from typing import Any, Protocol

import numpy as np

from phicli.errors import Missing

LESS = "fewer rows at once (max_batch), or a shorter context"


class Memory(Protocol):
    """Numbers (slots, heads, tokens, size) by their address, which the functions below are given again.

    device: as onnxruntime's bindings call it. chunk: tokens of a prompt that run at once. even: whether runs of an odd
    number of rows round differently. kept: slots for beginnings, for each that runs. apart: whether a run leaves the
    processor free.
    """

    device: str
    apart: bool
    chunk: int
    even: bool
    kept: float

    def reserve(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Memory that holds zeros."""

    def upload(self, value: np.ndarray) -> Any:
        """Memory that holds these numbers."""

    def address(self, held: Any) -> int: ...

    def copy(self, source: Any, target: Any, at: int, to: int, tokens: int) -> None:
        """Copy the first tokens of a slot; source and target may be one, or have room for different numbers of tokens.
        """

    def settle(self) -> None:
        """Wait until all copies are done."""

    def free(self, held: Any) -> None: ...


class CpuMemory:
    """Pages of the system, which are there only once something is written to them."""

    device, apart, chunk, even, kept = "cpu", False, 64, True, 1.0

    def reserve(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.zeros(shape, dtype)

    def upload(self, value: np.ndarray) -> np.ndarray:
        return value

    def address(self, held: np.ndarray) -> int:
        return held.ctypes.data

    def copy(self, source: np.ndarray, target: np.ndarray, at: int, to: int, tokens: int) -> None:
        target[to, :, :tokens] = source[at, :, :tokens]

    def settle(self) -> None:
        pass

    def free(self, held: np.ndarray) -> None:
        pass


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D of CUDA's driver."""

    _fields_ = [(f"{side}{name}", kind) for side in ("src", "dst") for name, kind in (
        ("XInBytes", ctypes.c_size_t), ("Y", ctypes.c_size_t), ("MemoryType", ctypes.c_int), ("Host", ctypes.c_void_p),
        ("Device", ctypes.c_uint64), ("Array", ctypes.c_void_p), ("Pitch", ctypes.c_size_t))] + [
        ("WidthInBytes", ctypes.c_size_t), ("Height", ctypes.c_size_t)]


class CudaMemory:
    """Memory of the first GPU, through CUDA's driver (https://docs.nvidia.com/cuda/cuda-driver-api)."""

    device, apart, chunk, even, kept = "cuda", True, 512, False, 0.25
    ON_DEVICE, OUT_OF_MEMORY = 2, 2  # CU_MEMORYTYPE_DEVICE, CUDA_ERROR_OUT_OF_MEMORY

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        context, device = ctypes.c_void_p(), ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context

    def reserve(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, tuple[int, ...], int]:
        size = int(np.prod(shape)) * dtype.itemsize
        place = self._allocated(size)
        self._call("cuMemsetD8_v2", place, ctypes.c_ubyte(0), ctypes.c_size_t(size))
        self.settle()
        return place.value, shape, dtype.itemsize

    def upload(self, value: np.ndarray) -> tuple[int, tuple[int, ...], int]:
        place = self._allocated(value.nbytes)
        self._call("cuMemcpyHtoD_v2", place, ctypes.c_void_p(value.ctypes.data), ctypes.c_size_t(value.nbytes))
        self.settle()
        return place.value, value.shape, value.itemsize

    def address(self, held: tuple[int, tuple[int, ...], int]) -> int:
        return held[0]

    def copy(self, source: Any, target: Any, at: int, to: int, tokens: int) -> None:
        """A line is what a head has of all tokens."""
        what = _Copy2D(srcMemoryType=self.ON_DEVICE, dstMemoryType=self.ON_DEVICE)
        for side, (place, shape, item), slot in (("src", source, at), ("dst", target, to)):
            _, heads, room, size = shape
            pitch = room * size * item
            setattr(what, f"{side}Device", place + slot * heads * pitch)
            setattr(what, f"{side}Pitch", pitch)
            what.WidthInBytes, what.Height = tokens * size * item, heads
        if tokens:
            self._here()
            self._call("cuMemcpy2D_v2", ctypes.byref(what))

    def settle(self) -> None:
        self._here()
        self._call("cuCtxSynchronize")

    def free(self, held: Any) -> None:
        self._here()
        self._call("cuMemFree_v2", ctypes.c_uint64(held[0]))

    def _allocated(self, size: int) -> ctypes.c_uint64:
        place = ctypes.c_uint64()
        self._here()
        self._call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(size))
        return place

    def _here(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._driver, name)(*arguments):
            what = "not enough memory" if code == self.OUT_OF_MEMORY else f"{name} failed with {code}"
            raise Missing(f"GPU: {what}", hint=LESS)


MEMORIES: dict[str, type[CpuMemory] | type[CudaMemory]] = {"cpu": CpuMemory, "cuda": CudaMemory}
