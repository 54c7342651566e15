"""Int8CacheAttention of attention_op.c once more, as a function of ops that onnxruntime has; see `portable`.

It is there to be right: at each token all of the cache becomes fp32, and goes through GroupQueryAttention so.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

SCALE = 2  # bytes
BITS = 7  # of bfloat16's fraction; its exponent has 127 added
SMALLEST = 2.0**-120  # a scale, so that no token's is 0


def function(domain: str, name: str, attributes: Sequence[str], opset: int, size: int, behind: int) -> Any:
    """A FunctionProto. attributes: GroupQueryAttention has them too. opset: version of ONNX's ops in the model.
    size: of a head. behind: bytes of a token behind its numbers, 2 for a CPU, 4 for CUDA, where the rest is in fp16.
    """
    from onnx import helper, numpy_helper, parser

    types, half = {"scale": "float", "softcap": "float"}, behind > SCALE
    handed_on = ", ".join(f"{name}: {types.get(name, 'int')} = @{name}" for name in attributes)
    lines = [
        f'<domain: "{domain}", opset_import: ["": {opset}, "com.microsoft": 1]>',
        f"{name} <{', '.join(attributes)}> (q, k, v, past_key, past_value, lengths, total, cosines, sines)"
        f" => (y, present_key, present_value{', queries, parts' if half else ''})", "{",
        *_room(), *_floats("key", "key_before", behind), *_floats("value", "value_before", behind),
        f"y, keys, values = com.microsoft.GroupQueryAttention <{handed_on}>"
        " (q, k, v, key, value, lengths, total, cosines, sines)",
        *_bytes("present_key", "keys", "key_before", behind),
        *_bytes("present_value", "values", "value_before", behind),
        *(("queries = Identity(y)", "parts = Cast <to = 1> (y)") if half else ()), "}"]
    found = parser.parse_function("\n".join(lines))
    found.node.insert(0, helper.make_node("Constant", [], ["mix"], value=numpy_helper.from_array(mixing(size))))
    return found


def mixing(size: int) -> np.ndarray:
    """float32 (size, size): the Walsh-Hadamard transform of blocks of channels, as large as a power of two can be."""
    width = size & -size
    block = np.ones((1, 1), np.float32)
    while len(block) < width:
        block = np.kron([[1, 1], [1, -1]], block)
    return np.kron(np.eye(size // width), block / width**0.5).astype(np.float32)


def _floats(out: str, cached: str, behind: int) -> Iterator[str]:
    """What a cache (…, size + behind) holds, (…, size)."""
    yield from _sliced(f"{out}_bytes", cached, 0, -behind)
    yield from _sliced(f"{out}_low", cached, -behind, 1 - behind)
    yield from _sliced(f"{out}_high", cached, 1 - behind, 2 - behind or 2**62)
    for half in ("low", "high"):
        yield f"{out}_{half}_wide = Cast <to = 7> ({out}_{half})"
    yield from (_int(f"{out}_byte", 256), f"{out}_low_bits = Mod({out}_low_wide, {out}_byte)")  # of the divisor's sign
    yield f"{out}_high_bits = Mul({out}_high_wide, {out}_byte)"
    yield f"{out}_bits = Add({out}_low_bits, {out}_high_bits)"
    yield from (_int(f"{out}_one", 2**BITS), f"{out}_fraction = Mod({out}_bits, {out}_one)")
    yield from (f"{out}_significand = Add({out}_fraction, {out}_one)", f"{out}_biased = Div({out}_bits, {out}_one)")
    yield from (_int(f"{out}_bias", 127 + BITS), f"{out}_exponent = Sub({out}_biased, {out}_bias)")
    yield from (f"{out}_float = Cast <to = 1> ({out}_significand)", f"{out}_power = Cast <to = 1> ({out}_exponent)")
    yield from (_float(f"{out}_two", 2), f"{out}_factor = Pow({out}_two, {out}_power)")
    yield from (f"{out}_scale = Mul({out}_float, {out}_factor)", f"{out}_numbers = Cast <to = 1> ({out}_bytes)")
    yield from (f"{out}_mixed = Mul({out}_numbers, {out}_scale)", f"{out}_single = MatMul({out}_mixed, mix)")
    yield f"{out} = Cast <to = {1 if behind == SCALE else 10}> ({out}_single)"


def _room() -> Iterator[str]:
    """The cache before with room for what is new, and bool (batch, 1, tokens, 1): whether a token is an old one."""
    yield from ("new = Shape <start = 1, end = 2> (q)", "all = Cast <to = 7> (total)", "first = Equal(all, new)")
    yield from ("wide = Cast <to = 7> (lengths)", _int("one", 1), "ends = Add(wide, one)", "rest = Sub(ends, new)")
    yield from (_int("zero", 0), "begins = Where(first, zero, rest)")
    yield from ("column_shape = Constant <value_ints = [-1, 1, 1, 1]> ()", "column = Reshape(begins, column_shape)")
    yield from ("past_room = Shape <start = 2, end = 3> (past_key)", "room = Max(past_room, all)")
    yield from ("stop = Squeeze(room)", "places = Range(zero, stop, one)")
    yield from ("line_shape = Constant <value_ints = [1, 1, -1, 1]> ()", "line = Reshape(places, line_shape)",
                "old = Less(line, column)")
    yield "more = Sub(room, past_room)"
    yield from ("six = Constant <value_ints = [0, 0, 0, 0, 0, 0]> ()", "none = Constant <value_ints = [0]> ()",
                "grown = Concat <axis = 0> (six, more, none)")
    yield from ("key_before = Pad(past_key, grown)", "value_before = Pad(past_value, grown)")


def _bytes(out: str, floats: str, before: str, behind: int) -> Iterator[str]:
    """A cache, of what is new in `floats` and old in the cache before."""
    yield from (f"{out}_single = Cast <to = 1> ({floats})", f"{out}_mixed = MatMul({out}_single, mix)")
    yield from (f"{out}_sizes = Abs({out}_mixed)", f"{out}_axis = Constant <value_ints = [-1]> ()")
    yield from (f"{out}_top = ReduceMax({out}_sizes, {out}_axis)", _float(f"{out}_most", 127))
    yield from (f"{out}_exact = Div({out}_top, {out}_most)", _float(f"{out}_smallest", SMALLEST))
    yield from (f"{out}_wanted = Max({out}_exact, {out}_smallest)", f"{out}_log = Log({out}_wanted)")
    yield from (_float(f"{out}_log2", 0.6931471805599453), f"{out}_logs = Div({out}_log, {out}_log2)")
    yield from (f"{out}_exponent = Floor({out}_logs)", _float(f"{out}_bits", BITS), _float(f"{out}_two", 2))
    yield from (f"{out}_place = Sub({out}_exponent, {out}_bits)", f"{out}_unit = Pow({out}_two, {out}_place)")
    yield from (f"{out}_parts = Div({out}_wanted, {out}_unit)", f"{out}_fraction = Ceil({out}_parts)")
    yield from (f"{out}_scale = Mul({out}_fraction, {out}_unit)", f"{out}_steps = Div({out}_mixed, {out}_scale)")
    yield from (f"{out}_whole = Round({out}_steps)", f"{out}_numbers = Cast <to = 3> ({out}_whole)")
    yield from (_float(f"{out}_bias", 126), f"{out}_biased = Add({out}_exponent, {out}_bias)")
    yield from (_float(f"{out}_one", 2**BITS), f"{out}_moved = Mul({out}_biased, {out}_one)")
    yield from (f"{out}_code = Add({out}_moved, {out}_fraction)", f"{out}_half = Cast <to = 7> ({out}_code)")
    yield from (_int(f"{out}_byte", 256), f"{out}_high_wide = Div({out}_half, {out}_byte)")
    yield from (f"{out}_low_wide = Mod({out}_half, {out}_byte)", f"{out}_high = Cast <to = 3> ({out}_high_wide)")
    yield from (f"{out}_low_byte = Cast <to = 2> ({out}_low_wide)", f"{out}_low = Cast <to = 3> ({out}_low_byte)")
    yield from (f"{out}_nought = Sub({out}_fraction, {out}_fraction)", f"{out}_none = Cast <to = 3> ({out}_nought)")
    rest = "".join(f", {out}_none" for _ in range(behind - SCALE))
    yield f"{out}_new = Concat <axis = -1> ({out}_numbers, {out}_low, {out}_high{rest})"
    yield f"{out} = Where(old, {before}, {out}_new)"


def _sliced(out: str, x: str, begin: int, end: int) -> Iterator[str]:
    for name, value in (("begin", begin), ("end", end), ("axis", -1)):
        yield f"{out}_{name} = Constant <value_ints = [{value}]> ()"
    yield f"{out} = Slice({x}, {out}_begin, {out}_end, {out}_axis)"


def _int(name: str, value: int) -> str:
    return f"{name} = Constant <value_int = {value}> ()"


def _float(name: str, value: float) -> str:
    return f"{name} = Constant <value_float = {value:.17e}> ()"
