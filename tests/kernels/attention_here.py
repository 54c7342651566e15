"""Attention of our own with a cache in int8: one node of it, and what it should compute.

    python attention_here.py LIBRARY DRIVER

runs CUDA's on a CPU, its kernels emulated, as a process of its own.
"""

import ctypes
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from phicli.export.portable_cache import function, mixing
from phicli.export.token_cache import ATTENTION, ATTRIBUTES, BEHIND, DOMAIN
from phicli.inference.attending import OP

POSITIONS = 2048  # of the rotary embedding's table


@dataclass(frozen=True)
class Attention:
    """One node, by the attributes of onnxruntime's. turned: channels that the rotary embedding turns."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 32
    window: int = -1
    softcap: float = 0.0
    turned: int = 0
    interleaved: bool = False
    packed: bool = True
    cuda: bool = False
    floats: bool = False  # keys and values as they are

    @property
    def device(self) -> str:
        return "cuda" if self.cuda else "cpu"

    @property
    def dtype(self) -> type:
        return np.float16 if self.cuda else np.float32

    @property
    def line(self) -> int:
        return self.size + (0 if self.floats else BEHIND[self.device])

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        angles = np.outer(np.arange(POSITIONS), 1000.0 ** -np.linspace(0, 1, max(self.turned // 2, 1)))
        return np.cos(angles).astype(self.dtype), np.sin(angles).astype(self.dtype)

    def session(self, library: Path | None, ours: bool = True,
                provider: str = "CPUExecutionProvider") -> onnxruntime.InferenceSession:
        """ours: not onnxruntime's attention. library: None for the function that does the same."""
        number = TensorProto.FLOAT16 if self.cuda else TensorProto.FLOAT
        line, kind = (self.line, TensorProto.INT8) if ours and not self.floats else (self.size, number)
        inputs = ["q", *(["", ""] if self.packed else ["k", "v"]), "past_k", "past_v", "lengths", "total"]
        inputs += ["cos", "sin"] if self.turned else []
        node = helper.make_node(
            "GroupQueryAttention" if not ours else OP if self.floats else ATTENTION[self.device], inputs,
            ["y", "present_k", "present_v", *(["queries", "parts"] if self.cuda and ours else [])],
            domain=DOMAIN if ours else "com.microsoft", num_heads=self.heads, kv_num_heads=self.kv_heads,
            scale=self.size ** -0.5, softcap=self.softcap, local_window_size=self.window,
            do_rotary=int(self.turned > 0), rotary_interleaved=int(self.interleaved))
        kinds = {**dict.fromkeys(inputs, number), "past_k": kind, "past_v": kind,
                 "lengths": TensorProto.INT32, "total": TensorProto.INT32}
        dims = {"q": 3, "k": 3, "v": 3, "lengths": 1, "total": 0, "cos": 2, "sin": 2}
        shapes = {name: [f"{name}{i}" for i in range(count)] for name, count in dims.items()}
        for name in ("past_k", "past_v"):
            shapes[name] = ["b", self.kv_heads, "room", line]
        graph = helper.make_graph(
            [node], "one", [helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in inputs if name],
            [helper.make_tensor_value_info("y", number, None),
             *(helper.make_tensor_value_info(name, kind, None) for name in ("present_k", "present_v"))])
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        if library:
            options.register_custom_ops_library(str(library))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        if not self.floats:
            op, behind = ATTENTION[self.device], BEHIND[self.device]
            model.functions.append(function(DOMAIN, op, ATTRIBUTES, 21, self.size, behind))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])

    def feeds(self, new: tuple[np.ndarray, ...], past: tuple[np.ndarray, np.ndarray], lengths: list[int],
              total: int) -> dict[str, np.ndarray]:
        """new: query, key, value (batch, tokens, heads, size). lengths: of rows, with what is new."""
        flat = [x.reshape(*x.shape[:2], -1).astype(self.dtype) for x in new]
        given = {"q": np.concatenate(flat, -1)} if self.packed else dict(zip("qkv", flat, strict=True))
        given |= {"past_k": past[0], "past_v": past[1], "lengths": np.array(lengths, np.int32) - 1,
                  "total": np.array(total, np.int32)}
        return given | (dict(zip(("cos", "sin"), self.tables, strict=True)) if self.turned else {})

    def turn(self, x: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """(batch, tokens, heads, size) in float64, rotated by their positions."""
        half, x = self.turned // 2, x.astype(np.float64)
        if not half:
            return x
        at = begins[:, None] + np.arange(x.shape[1])
        cos, sin = (table[at][:, :, None].astype(np.float64) for table in self.tables)
        places = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if self.interleaved else (
            slice(0, half), slice(half, 2 * half))
        one, two = (x[..., place] for place in places)
        turned = x.copy()
        turned[..., places[0]], turned[..., places[1]] = one * cos - two * sin, two * cos + one * sin
        return turned

    def expected(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Of rotated queries, and keys and values (batch, heads, tokens, size), in float64."""
        group = self.heads // self.kv_heads
        scores = np.einsum("btnc,bnjc->bntj", q, keys.repeat(group, 1)) * self.size ** -0.5
        if self.softcap:
            scores = self.softcap * np.tanh(scores / self.softcap)
        own, other = begins[:, None, None] + np.arange(q.shape[1])[:, None], np.arange(keys.shape[2])
        seen = (other <= own) & ((self.window < 0) | (other > own - self.window))
        scores = np.where(seen[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bntj,bnjc->btnc", weights / weights.sum(-1, keepdims=True), values.repeat(group, 1))
        return mixed.reshape(*q.shape[:2], -1)


    def read(self, cached: np.ndarray) -> np.ndarray:
        """What a cache holds, float64 (…, size)."""
        if self.floats:
            return cached.astype(np.float64)
        bits = np.ascontiguousarray(cached[..., self.size : self.size + 2]).view(np.uint16).astype(np.uint32) << 16
        return cached[..., : self.size] * bits.view(np.float32).astype(np.float64) @ mixing(self.size)


def check(attention: Attention, ours: onnxruntime.InferenceSession, own: onnxruntime.InferenceSession, in_place: bool,
          device: str = "cpu", rough: bool = False) -> None:
    """A prompt in two parts, then single tokens, of a row that is alone and of three with different lengths.

    own: with onnxruntime's attention, on a cache in floats. rough: what `ours` does on its way rounds to fp16.
    """
    rng, mixed = np.random.default_rng(0), mixing(attention.size)
    most = 5e-2 if rough else 4e-3 if attention.cuda else 2e-4
    kind, share = (np.float32, 1e-6) if attention.floats else (np.int8, (0.65 if rough else 0.51) / 127)
    for parts, batch in (((70, 33, 1, 1), 1), ((1, 600, 1), 1), ((5, 1, 1), 3)):
        room = sum(parts) + 7 if in_place else 0
        past = [np.zeros((batch, attention.kv_heads, room, attention.line), kind) for _ in range(2)]
        lengths = np.zeros(batch, np.int64)
        for step, tokens in enumerate(parts):
            if batch > 1 and step:
                lengths -= np.arange(batch)  # rows that are cut back
            begins, lengths = lengths, lengths + tokens
            new = tuple(rng.standard_normal((batch, tokens, n, attention.size)).astype(attention.dtype)
                        for n in (attention.heads, attention.kv_heads, attention.kv_heads))
            total = room if in_place and batch > 1 else int(lengths.max())  # of the places, as CUDA graphs are told
            feeds = attention.feeds(new, tuple(past), lengths.tolist(), total)
            found, *present = run_in_place(ours, feeds, device) if in_place else ours.run(None, feeds)[:3]
            floats = [attention.read(p) for p in present]
            for number in range(batch):
                kept = begins[number]
                for side in range(2):
                    assert (present[side][number, :, :kept] == past[side][number, :, :kept]).all()
                    exact = (attention.turn(new[1], begins), new[2])[side][number].swapaxes(0, 1)
                    off = (floats[side][number, :, kept : kept + tokens] - exact) @ mixed
                    assert (np.abs(off) <= np.abs(exact @ mixed).max(-1, keepdims=True) * share).all()
            expected = attention.expected(attention.turn(new[0], begins), *(f[:, :, :total] for f in floats), begins)
            assert np.abs(found - expected).max() < most
            other = own.run(None, attention.feeds(
                new, tuple(attention.read(p).astype(attention.dtype) for p in past), lengths.tolist(),
                int(lengths.max())))[0]
            assert np.abs(found - other).max() < (most if attention.floats else 0.06)
            past = present


def run_in_place(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], device: str) -> list[np.ndarray]:
    """As genai and the engine do it: the cache's outputs lie where its inputs do."""
    binding, cache = session.io_binding(), {}
    for name, value in feeds.items():
        place = "cpu" if name == "total" else device
        held = onnxruntime.OrtValue.ortvalue_from_numpy(value.copy(), place, 0)
        binding.bind_ortvalue_input(name, held)
        if name.startswith("past"):
            cache[name] = held
            binding.bind_ortvalue_output(name.replace("past", "present"), held)
    binding.bind_output("y", "cpu")
    session.run_with_iobinding(binding)
    return [binding.get_outputs()[-1].numpy(), *(held.numpy().copy() for held in cache.values())]


ON_CUDA = [Attention(cuda=True, size=64), Attention(cuda=True, heads=3, kv_heads=3, size=96, turned=96, packed=False),
           Attention(cuda=True, heads=6, kv_heads=1, size=64, turned=32, interleaved=True, window=40),
           Attention(cuda=True, heads=2, kv_heads=2, size=128, turned=96, softcap=2.0, window=100)]


def main() -> None:
    library, driver = sys.argv[1:]
    ctypes.CDLL(driver)  # found by its name from then on
    for attention in ON_CUDA:
        for in_place in (True, False):
            check(attention, attention.session(Path(library)), attention.session(None, ours=False), in_place)


if __name__ == "__main__":
    main()
