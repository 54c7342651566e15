"""Attention of our own with a cache in int8: what it computes, beside float64 and onnxruntime's own op."""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from phicli.export.portable_cache import function, mixing
from phicli.export.token_cache import ATTENTION, ATTRIBUTES, DOMAIN
from phicli.kernels.build import missing, ops_library

pytestmark = pytest.mark.skipif(bool(missing("cpu")), reason=f"{missing('cpu')}")
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

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        angles = np.outer(np.arange(POSITIONS), 1000.0 ** -np.linspace(0, 1, max(self.turned // 2, 1)))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def session(self, ours: bool, library: bool = True) -> onnxruntime.InferenceSession:
        """library: whether it is there; else the function does the same."""
        line, kind = (self.size + 2, TensorProto.INT8) if ours else (self.size, TensorProto.FLOAT)
        inputs = ["q", *(["", ""] if self.packed else ["k", "v"]), "past_k", "past_v", "lengths", "total"]
        inputs += ["cos", "sin"] if self.turned else []
        node = helper.make_node(
            ATTENTION if ours else "GroupQueryAttention", inputs, ["y", "present_k", "present_v"],
            domain=DOMAIN if ours else "com.microsoft", num_heads=self.heads, kv_num_heads=self.kv_heads,
            scale=self.size ** -0.5, softcap=self.softcap, local_window_size=self.window,
            do_rotary=int(self.turned > 0), rotary_interleaved=int(self.interleaved))
        kinds = {**dict.fromkeys(inputs, TensorProto.FLOAT), "past_k": kind, "past_v": kind,
                 "lengths": TensorProto.INT32, "total": TensorProto.INT32}
        dims = {"q": 3, "k": 3, "v": 3, "lengths": 1, "total": 0, "cos": 2, "sin": 2}
        shapes = {name: [f"{name}{i}" for i in range(count)] for name, count in dims.items()}
        for name in ("past_k", "past_v"):
            shapes[name] = ["b", self.kv_heads, "room", line]
        graph = helper.make_graph(
            [node], "one", [helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in inputs if name],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
             *(helper.make_tensor_value_info(name, kind, None) for name in ("present_k", "present_v"))])
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        if library:
            options.register_custom_ops_library(str(ops_library("cpu")))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        model.functions.append(function(DOMAIN, ATTENTION, ATTRIBUTES, 21, self.size))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def feeds(self, new: tuple[np.ndarray, ...], past: tuple[np.ndarray, np.ndarray], lengths: list[int],
              total: int) -> dict[str, np.ndarray]:
        """new: query, key, value (batch, tokens, heads, size). lengths: of rows, with what is new."""
        flat = [x.reshape(*x.shape[:2], -1) for x in new]
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


def read(cached: np.ndarray) -> np.ndarray:
    """What a cache holds, float64 (…, size)."""
    bits = np.ascontiguousarray(cached[..., -2:]).view(np.uint16).astype(np.uint32) << 16
    mixed = cached[..., :-2] * bits.view(np.float32).astype(np.float64)
    return mixed @ mixing(mixed.shape[-1])


@cache
def sessions(attention: Attention) -> list[onnxruntime.InferenceSession]:
    return [attention.session(ours) for ours in (True, False)]


KINDS = [Attention(), Attention(heads=3, kv_heads=3, size=16, packed=False), Attention(turned=32, size=32),
         Attention(heads=7, kv_heads=1, size=80, turned=32, packed=False),
         Attention(turned=64, size=64, interleaved=True), Attention(window=5),
         Attention(window=200, turned=64, size=96), Attention(softcap=2.0, size=128, window=100),
         Attention(heads=2, kv_heads=1, size=512)]


@pytest.mark.parametrize("attention", KINDS, ids=str)
@pytest.mark.parametrize("in_place", [True, False])
def test_attention_is_what_it_says(attention, in_place):
    """A prompt in two parts, then single tokens, of a row that is alone and of three with different lengths."""
    rng = np.random.default_rng(0)
    ours, own = sessions(attention)
    line, mixed = attention.size + 2, mixing(attention.size)
    for parts, batch in (((70, 33, 1, 1), 1), ((1, 600, 1), 1), ((5, 1, 1), 3)):
        room = sum(parts) + 7 if in_place else 0
        past = [np.zeros((batch, attention.kv_heads, room, line), np.int8) for _ in range(2)]
        lengths = np.zeros(batch, np.int64)
        for step, tokens in enumerate(parts):
            if batch > 1 and step:
                lengths -= np.arange(batch)  # rows that are cut back
            begins, lengths = lengths, lengths + tokens
            new = tuple(rng.standard_normal((batch, tokens, n, attention.size)).astype(np.float32)
                        for n in (attention.heads, attention.kv_heads, attention.kv_heads))
            total = int(lengths.max())
            feeds = attention.feeds(new, tuple(past), lengths.tolist(), total)
            found, *present = run_in_place(ours, feeds) if in_place else ours.run(None, feeds)
            floats = [read(p) for p in present]
            for number in range(batch):
                kept = begins[number]
                for side in range(2):
                    assert (present[side][number, :, :kept] == past[side][number, :, :kept]).all()
                    exact = (attention.turn(new[1], begins), new[2])[side][number].swapaxes(0, 1)
                    off = (floats[side][number, :, kept : kept + tokens] - exact) @ mixed
                    assert (np.abs(off) <= np.abs(exact @ mixed).max(-1, keepdims=True) / 127 * 0.51).all()
            expected = attention.expected(attention.turn(new[0], begins), *(f[:, :, :total] for f in floats), begins)
            assert np.abs(found - expected).max() < 2e-4
            other = own.run(None, attention.feeds(
                new, tuple(read(p).astype(np.float32) for p in past), lengths.tolist(), total))[0]
            assert np.abs(found - other).max() < 0.05
            past = present


def run_in_place(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """As genai and the engine do it: the cache's outputs lie where its inputs do."""
    binding = session.io_binding()
    kept = [feeds["past_k"].copy(), feeds["past_v"].copy()]
    for name, value in (feeds | dict(zip(("past_k", "past_v"), kept, strict=True))).items():
        binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
    for name, value in zip(("present_k", "present_v"), kept, strict=True):
        binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
    binding.bind_output("y", "cpu")
    session.run_with_iobinding(binding)
    return [binding.get_outputs()[-1].numpy(), *kept]


def test_a_row_rounds_the_same_alone_as_beside_others():
    attention, rng = Attention(turned=32), np.random.default_rng(1)
    session, _ = sessions(attention)
    past = tuple(rng.integers(-127, 128, (3, 2, 1300, 34)).astype(np.int8) for _ in range(2))
    for cached in past:
        cached[..., -2:] = np.array([0, 60], np.int8)
    new = tuple(rng.standard_normal((3, 1, n, 32)).astype(np.float32) for n in (4, 2, 2))
    lengths = [1200, 3, 700]
    together = session.run(None, attention.feeds(new, past, lengths, 1300))[0]
    for row in range(3):
        one = slice(row, row + 1)
        alone = session.run(None, attention.feeds(tuple(x[one] for x in new), tuple(p[one] for p in past),
                                                  lengths[one], lengths[row]))[0]
        assert (alone[0] == together[row]).all()


def test_tokens_of_a_run_round_as_they_do_one_by_one():
    attention, rng = Attention(turned=32), np.random.default_rng(3)
    session, _ = sessions(attention)
    past = tuple(rng.integers(-127, 128, (1, 2, 1300, 34)).astype(np.int8) for _ in range(2))
    for cached in past:
        cached[..., -2:] = np.array([0, 60], np.int8)
    new = tuple(rng.standard_normal((1, 8, n, 32)).astype(np.float32) for n in (4, 2, 2))
    together, *_ = session.run(None, attention.feeds(new, past, [1028], 1300))
    for token in range(8):
        one, *past = session.run(None, attention.feeds(tuple(x[:, token : token + 1] for x in new), past,
                                                       [1021 + token], 1300))
        assert (one[:, 0] == together[:, token]).all()


@pytest.mark.parametrize("attention", [KINDS[1], Attention(turned=32, window=5)], ids=str)
def test_without_the_library_the_function_does_the_same(attention):
    """Each goes on from the other's cache."""
    rng, ours = np.random.default_rng(2), sessions(attention)[0]
    portable = attention.session(ours=True, library=False)
    for room in (0, 40):
        past = tuple(np.zeros((1, attention.kv_heads, room, attention.size + 2), np.int8) for _ in range(2))
        length = 0
        for tokens in (20, 3, 1, 1):
            length += tokens
            new = tuple((rng.standard_normal((1, tokens, n, attention.size)) * size).astype(np.float32)
                        for n, size in ((attention.heads, 1), (attention.kv_heads, 1), (attention.kv_heads, 300)))
            (y, *present), (other, *others) = (
                session.run(None, attention.feeds(new, past, [length], length)) for session in (ours, portable))
            for one, two in zip(present, others, strict=True):
                one, two = (read(cached)[:, :, :length] for cached in (one, two))
                assert np.abs(one - two).max() <= 1.01 * np.abs(one).max() / 127
            assert np.abs(y - other).max() < 0.05 * np.abs(new[2]).max() + 0.02
            past = tuple(others)


@pytest.mark.parametrize("size", [16, 80, 96, 512])
def test_channels_are_mixed_evenly_and_back(size):
    mixed = mixing(size)
    assert np.abs(mixed @ mixed - np.eye(size)).max() < 1e-6
    assert (np.count_nonzero(mixed, axis=0) == size & -size).all() and len(np.unique(np.abs(mixed[mixed != 0]))) == 1
