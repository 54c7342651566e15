"""Graphs of our ops that a stranger could send: right ones, each with some things wrong. Run by test_sanitized.py.

    python hostile.py LIBRARY COUNT SEED MATMUL

prints how many of them ran and how many were refused. A sanitizer that finds a fault ends the process.
"""

import json
import random
import sys
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

HUGE = 1 << 40
NUMBERS = (-HUGE, -17, -16, -1, 0, 1, 7, 8, 15, 17, 33, 48, 1000, 1024, 1040, 65536, 2**31 - 1, 2**31, HUGE, 2**63 - 1)
WIDTHS = (0, 1, 2, 7, 8, 9, 31, 32, 33, 64, 1000)
KINDS = (np.float32, np.float16, np.uint8, np.int8, np.int32, np.int64, np.float64)


class Case:
    """One node: its inputs (None: left out) and attributes. What is constant lies in the graph, the rest is fed."""

    def __init__(self, op: str, domain: str, inputs: list[np.ndarray | None], constant: set[int],
                 attributes: dict[str, Any], *outs: type):
        self.op, self.domain, self.inputs, self.attributes = op, domain, inputs, attributes
        self.constant, self.outs = constant, outs

    def spoil(self, rng: random.Random) -> None:
        if self.inputs:
            rng.choice([self._attribute, self._attribute, self._shape, self._shape, self._shape, self._kind,
                        self._leave_out, self._ids, self._arity])(rng)

    def _attribute(self, rng: random.Random) -> None:
        name = rng.choice(sorted(self.attributes))
        value = self.attributes[name]
        if rng.random() < 0.05:
            del self.attributes[name]
        elif rng.random() < 0.05:
            self.attributes[name] = 1.5
        elif isinstance(value, list):
            changed = [rng.choice((*NUMBERS, entry, entry)) for entry in value]
            self.attributes[name] = rng.choice([changed, [], value * 2, value[:-1], [16] * 1025, [1024] * 3,
                                                [2 * rank for rank in value]])
        elif isinstance(value, float):
            self.attributes[name] = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
        elif isinstance(value, int):
            self.attributes[name] = rng.choice((*NUMBERS, value * 2, value * 1000, value + 1, value - 1))

    def _shape(self, rng: random.Random) -> None:
        i = rng.choice([i for i, value in enumerate(self.inputs) if value is not None] or [0])
        value = self.inputs[i]
        if value is None:
            return
        shape = list(value.shape)
        how = rng.random()
        if how < 0.6 and shape:
            at = rng.randrange(len(shape))
            shape[at] = rng.choice((*WIDTHS, shape[at] + 1, max(shape[at] - 1, 0), shape[at] * 2))
        elif how < 0.75:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice((0, 1, 1, 2)))
        elif how < 0.9 and shape:
            shape.pop(rng.randrange(len(shape)))
        else:
            shape = rng.choice(([], [0], [1], [1] * 9, [HUGE, 0, 32], [0, HUGE, 32], [0, 1, 2**57],
                                [1, 0, 32], [3, 0, 64]))
        if np.prod(shape, dtype=object) < 1 << 20:
            self.inputs[i] = np.resize(value, shape) if value.size else np.zeros(shape, value.dtype)

    def _kind(self, rng: random.Random) -> None:
        i = rng.randrange(len(self.inputs))
        if (value := self.inputs[i]) is not None:
            self.inputs[i] = value.astype(rng.choice(KINDS))

    def _leave_out(self, rng: random.Random) -> None:
        self.inputs[rng.randrange(len(self.inputs))] = None

    def _arity(self, rng: random.Random) -> None:
        if self.domain == "phicli.cpu" and rng.random() < 0.3:
            self.outputs = rng.choice((1, 2, 3, 4))
            return
        if rng.random() < 0.5:
            del self.inputs[rng.randrange(len(self.inputs)):]
        else:
            self.inputs.append(np.ones(3, np.float32))

    def _ids(self, rng: random.Random) -> None:
        if self.domain == "phicli.cache":
            place = rng.choice((5, 6))  # lengths of rows, and of all
            if len(self.inputs) > place and (value := self.inputs[place]) is not None:
                self.inputs[place] = np.full(value.shape, rng.choice([n for n in NUMBERS if abs(n) < 2**31]), np.int32)
        elif self.domain.startswith("phicli") and self.inputs and self.inputs[0] is not None:
            self.inputs[0] = np.array([rng.choice((*NUMBERS, 2, 3, 4)) for _ in range(rng.randrange(4))], np.int64)
        elif len(self.inputs) == 4:  # zero points come before an order of inputs and a bias
            self.inputs += [rng.choice([None, np.arange(32, dtype=np.int32)]), np.ones(rng.choice(WIDTHS), np.float32)]

    def run(self) -> None:
        known = [(f"i{i}", value) for i, value in enumerate(self.inputs) if value is not None]
        outputs = [f"y{i}" for i in range(len(self.outs))]
        node = helper.make_node(self.op, ["" if value is None else f"i{i}" for i, value in enumerate(self.inputs)],
                                outputs, domain=self.domain, **self.attributes)
        fed = {name: value for name, value in known if int(name[1:]) not in self.constant}
        graph = helper.make_graph(
            [node], "hostile",
            [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
             for name, value in fed.items()],
            [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(out)), None)
             for name, out in zip(outputs, self.outs, strict=True)],
            [numpy_helper.from_array(value, name) for name, value in known if name not in fed])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(self.domain, 1)]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # each tensor between walls of its own
        options.register_custom_ops_library(sys.argv[1])
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for value in session.run(None, fed):
            np.asarray(value).tobytes()  # all of it is there


def lora(rng: random.Random, numbers: np.random.Generator) -> Case:
    """A right LoraDown, LoraUp or LoraGatedUp."""
    ranks, width = [16, 64, 48], rng.choice((32, 64, 96))
    batch, tokens = rng.choice(((1, 1), (1, 3), (1, 40), (3, 1), (3, 5)))
    ids = [rng.randrange(4) for _ in range(rng.choice((1, batch)))]
    widest = max(ranks[i - 1] if i else 0 for i in ids)
    op = rng.choice(("LoraDown", "LoraUp", "LoraGatedUp"))
    half, int8 = rng.choice(((False, False), (False, True), (True, False)))
    kind = np.float16 if half else np.float32

    def some(*shape: int, dtype: type = kind) -> np.ndarray:
        return numbers.standard_normal(shape).astype(dtype)

    def matrix() -> np.ndarray:
        scales = 4 * (sum(ranks) if op == "LoraDown" else len(ranks) * width) if int8 else 0
        if int8:
            return numbers.integers(0, 127, sum(ranks) * width + scales).astype(np.uint8)
        return some(sum(ranks) * width, dtype=np.float16)

    inputs: list[np.ndarray | None] = [np.array(ids, np.int64)]
    attributes: dict[str, Any] = {"ranks": ranks}
    if op != "LoraDown" and rng.random() < 0.5:  # two or three segments of outputs, with columns of h of their own
        segments = rng.choice((2, 3))
        for name in ("ends", "ends2")[: 1 + (op == "LoraGatedUp")]:
            attributes[name] = sorted(rng.choice((0, 8, width)) for _ in range(segments - 1)) + [width]
        widest *= segments
    if op == "LoraDown":
        inputs += [some(batch, tokens, width), matrix()]
        constant = {2}
    else:
        inputs.append(some(batch, tokens, widest, dtype=np.float32))
        for _ in range(1 + (op == "LoraGatedUp")):
            inputs += [some(batch, tokens, width), matrix()]
        constant = {3, 5}
    if rng.random() < 0.3:  # as an input, of several ops
        attributes["row"] = rng.randrange(3)
        inputs.append(np.tile(np.array(ranks, np.int64), (3, 1)))
    return Case(op, "phicli", inputs, constant, attributes, np.float32 if op == "LoraDown" else kind)


def product(rng: random.Random, numbers: np.random.Generator) -> Case:
    """A right MatMulNBits."""
    bits, block = rng.choice(((4, 32), (4, 64), (4, 128), (8, 16), (8, 32), (8, 64), (8, 128)))
    blocks, outputs = rng.choice((1, 3, 9)), rng.choice((1, 7, 33))
    x = numbers.standard_normal((1, rng.choice((1, 3, 9)), block * blocks)).astype(np.float32)
    packed = numbers.integers(0, 256, (outputs, blocks, block * bits // 8), np.uint8)
    scales = numbers.standard_normal((outputs, blocks)).astype(np.float32)
    points = numbers.integers(0, 256, (outputs, -(-blocks * bits // 8)), np.uint8)
    inputs: list[np.ndarray | None] = [x, packed, scales, points]
    if rng.random() < 0.5:
        inputs += [None, np.ones(outputs, np.float32)]
    attributes = {"N": outputs, "K": block * blocks, "bits": bits, "block_size": block}
    return Case("MatMulNBits", "com.microsoft", inputs, {1, 2, 3, 5}, attributes, np.float32)


def attention(rng: random.Random, numbers: np.random.Generator) -> Case:
    """A right Int8CacheAttention or FloatCacheAttention."""
    kv_heads, group, size, batch = rng.choice((1, 2)), rng.choice((1, 3)), rng.choice((16, 48)), rng.choice((1, 2))
    tokens, before, spare = rng.choice((1, 2, 40)), rng.choice((0, 1, 70, 600)), rng.choice((0, 50))
    width, room = kv_heads * size, before + rng.choice((0, tokens + spare))
    op, behind, kind = rng.choice((("Int8CacheAttention", 2, np.int8), ("FloatCacheAttention", 0, np.float32)))
    past = [numbers.integers(-127, 128, (batch, kv_heads, room, size + behind)).astype(kind) for _ in range(2)]
    parts = [numbers.standard_normal((batch, tokens, n)).astype(np.float32) for n in (group * width, width, width)]
    lengths, total = np.full(batch, before + tokens - 1, np.int32), np.array(before + tokens, np.int32)
    query = parts if rng.random() < 0.5 else [np.concatenate(parts, -1), None, None]
    inputs: list[np.ndarray | None] = [*query, *past, lengths, total]
    attributes: dict[str, Any] = {"num_heads": kv_heads * group, "kv_num_heads": kv_heads, "scale": 0.2,
                                  "softcap": rng.choice((0.0, 3.0)), "local_window_size": rng.choice((-1, 9))}
    if rng.random() < 0.5:
        attributes |= {"do_rotary": 1, "rotary_interleaved": rng.choice((0, 1))}
        inputs += [numbers.standard_normal((before + tokens, rng.choice((4, size // 2)))).astype(np.float32)] * 2
    return Case(op, "phicli.cache", inputs, {7, 8}, attributes, np.float32, kind, kind)


def joined(rng: random.Random, numbers: np.random.Generator) -> Case:
    """A right LoraMatMulNBits or LoraGatedMatMulNBits."""
    ranks, width, block = [16, 64, 48], rng.choice((32, 64, 96)), 32
    gated, int8, segments = rng.random() < 0.4, rng.random() < 0.5, rng.choice((1, 1, 2))
    outputs = [24, 24] if gated else [rng.choice((8, 16, 40)) for _ in range(rng.choice((1, 2, 3)))]
    batch, tokens = rng.choice(((1, 1), (1, 3), (1, 40), (3, 1), (3, 5)))
    of_a = [segments * rank for rank in ranks]

    def matrix(columns: int, scales: int, of_all: list[int]) -> np.ndarray:
        if int8:
            return numbers.integers(0, 127, sum(of_all) * columns + 4 * scales).astype(np.uint8)
        return numbers.standard_normal(sum(of_all) * columns).astype(np.float16)

    inputs: list[np.ndarray | None] = [
        np.array([rng.randrange(4) for _ in range(rng.choice((1, batch)))], np.int64),
        numbers.standard_normal((batch, tokens, width)).astype(np.float32), matrix(width, sum(of_a), of_a),
        np.tile(np.array(of_a, np.int64), (3, 1)) if rng.random() < 0.3 else None]
    for count in outputs:
        blocks = width // block
        inputs += [numbers.integers(0, 256, (count, blocks, block // 2), np.uint8),
                   numbers.standard_normal((count, blocks)).astype(np.float32),
                   numbers.integers(0, 256, (count, -(-blocks // 2)), np.uint8) if rng.random() < 0.7 else None,
                   matrix(count, len(ranks) * count, ranks)]
    attributes: dict[str, Any] = {"N": outputs, "K": width, "bits": 4, "block_size": block, "ranks": of_a,
                                  "row": rng.randrange(3)}
    if segments > 1 or rng.random() < 0.3:
        attributes["ends"] = [end for count in outputs for end in (*[8] * (segments - 1), count)]
    return Case("LoraGatedMatMulNBits" if gated else "LoraMatMulNBits", "phicli.cpu", inputs,
                set(range(2, len(inputs))), attributes, *[np.float32] * (1 if gated else len(outputs)))


def main() -> None:
    count, seed, matmul = map(int, sys.argv[2:])
    found = {"right": 0, "ran": 0, "refused": 0}
    for number in range(count):
        rng = random.Random(seed + number)
        kinds = (lora, attention, product, joined) if matmul else (lora, attention)
        case = rng.choice(kinds)(rng, np.random.default_rng(seed + number))
        if rng.random() < 0.1:
            case.run()  # a right one
            found["right"] += 1
            continue
        for _ in range(rng.choice((1, 1, 1, 2))):
            case.spoil(rng)
        if rng.random() < 0.5:
            case.constant = set()
        try:
            case.run()
            found["ran"] += 1
        except Exception:  # onnxruntime has many kinds; that it is one is what counts
            found["refused"] += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main()
