"""The ops of lora_op.c once more, as functions of ONNX's own ops, which a model carries with it.

onnxruntime takes the library's kernels where it is registered, and puts these functions' nodes in the ops' places where
it is not: so a model with fused adapters runs wherever onnxruntime does, without a compiler. As in `masked`, h has the
columns of all adapters, and 0 in those of the others. What follows from constants alone, which is all of A and B,
onnxruntime computes once, when the model is loaded.
"""

from collections.abc import Iterator
from typing import Any

END = 2**62
FRACTION = 2**23  # of a float: its bits are sign, exponent + 127, and 23 of the fraction


def functions(domain: str, opset: int, adapters: int, elem_type: int, lanes: int, int8: bool,
              segments: bool = False) -> list[Any]:
    """LoraDown, LoraUp and LoraGatedUp, a FunctionProto each. Ranks and ends they take from the nodes' attributes.

    Args:
        opset: version of ONNX's ops in the model. adapters: how many there are.
        elem_type: of the activations, and here of h too. lanes: of B, see `in_blocks`; A has one.
        segments: whether nodes have the attributes ends and ends2.
    """
    from onnx import parser

    gate, up = ([*_b(name, ends if segments else "", adapters, elem_type, lanes, int8)]
                for name, ends in (("b", "ends"), ("b2", "ends2")))
    one, two = (", ends", ", ends, ends2") if segments else ("", "")
    bodies = {
        "LoraDown <ranks> (ids, x, a) => (h)": _down(elem_type, int8),
        f"LoraUp <ranks{one}> (ids, h, base, b) => (y)": [
            *gate, "change = MatMul(h, b_matrix)", "y = Add(base, change)"],
        f"LoraGatedUp <ranks{two}> (ids, h, base, b, base2, b2) => (y)": [
            *gate, "change = MatMul(h, b_matrix)", "gate = Add(base, change)",
            *up, "change2 = MatMul(h, b2_matrix)", "up = Add(base2, change2)",
            "sigmoid = Sigmoid(gate)", "silu = Mul(gate, sigmoid)", "y = Mul(silu, up)"],
    }
    head = f'<domain: "{domain}", opset_import: ["": {opset}]>'
    return [parser.parse_function("\n".join([head, name, "{", *lines, "}"])) for name, lines in bodies.items()]


def _down(elem_type: int, int8: bool) -> Iterator[str]:
    yield "ranks = Constant <value_ints: ints = @ranks> ()"
    yield "total = ReduceSum (ranks)"
    yield from (_ints("other", -1), "a_shape = Concat <axis = 0> (total, other)", "a_rows = Reshape(a, a_shape)")
    yield from _matrix("a_matrix", "a_rows", elem_type, 1, int8)
    yield "all = MatMul(x, a_matrix)"
    yield from (_ints("axis", 0), "stops = CumSum(ranks, axis)", *_interval("owner", "total", "stops"))
    yield from (_ints("one", 1), "number = Add(owner, one)")
    yield from _reshaped("id", "ids", -1, 1, 1)
    yield "owned = Equal(id, number)"
    yield f"mask = Cast <to = {elem_type}> (owned)"
    yield "h = Mul(all, mask)"


def _b(name: str, ends: str, adapters: int, elem_type: int, lanes: int, int8: bool) -> Iterator[str]:
    """(sum of ranks, outputs), from each adapter's part, which is in blocks of `lanes` outputs.

    ends: attribute of the outputs that read columns of h of their own: the others of an output's row are 0 then.
    """
    parts = [f"{name}_{number}" for number in range(adapters)]
    yield from (f"{name}_ranks = Constant <value_ints: ints = @ranks> ()", _ints(f"{name}_scale", 4 * int8))
    yield f"{name}_lengths = Add({name}_ranks, {name}_scale)"  # of an output
    yield from (f"{name}_total = ReduceSum ({name}_lengths)", _ints(f"{name}_other", -1))
    yield f"{name}_shape = Concat <axis = 0> ({name}_total, {name}_other)"
    yield f"{name}_parts = Reshape({name}, {name}_shape)"
    yield f"{', '.join(parts)} = Split <axis = 0> ({name}_parts, {name}_lengths)"
    if ends:
        yield from _segments(name, ends, elem_type)
    for number, part in enumerate(parts):
        yield from (_ints(f"{part}_at", number), f"{part}_length = Gather({name}_lengths, {part}_at)")
        yield from (_ints(f"{part}_lanes", lanes), f"{part}_width = Mul({part}_length, {part}_lanes)")
        yield f"{part}_wide = Concat <axis = 0> ({name}_other, {part}_width)"
        yield f"{part}_blocks = Reshape({part}, {part}_wide)"
        yield from _matrix(f"{part}_matrix", f"{part}_blocks", elem_type, lanes, int8)
        if ends:
            yield f"{part}_segments = Mul({part}_matrix, {name}_mask)"
            yield f"{part}_own = Flatten <axis = 2> ({part}_segments)"
    whole = ", ".join(f"{part}_{'own' if ends else 'matrix'}" for part in parts)
    yield f"{name}_matrix = Concat <axis = 0> ({whole})"


def _segments(name: str, ends: str, elem_type: int) -> Iterator[str]:
    """The mask (segments, 1, outputs) that is 1 where an output lies in a segment."""
    yield f"{name}_ends = Constant <value_ints: ints = @{ends}> ()"
    yield from (_ints(f"{name}_last", -1), f"{name}_outputs = Gather({name}_ends, {name}_last)")
    yield from _interval(f"{name}_segment", f"{name}_outputs", f"{name}_ends")
    yield from (f"{name}_count = Shape({name}_ends)", *_range(f"{name}_numbers", f"{name}_count"))
    yield from _reshaped(f"{name}_column", f"{name}_numbers", -1, 1, 1)
    yield f"{name}_owned = Equal({name}_column, {name}_segment)"
    yield f"{name}_mask = Cast <to = {elem_type}> ({name}_owned)"


def _interval(out: str, count: str, stops: str) -> Iterator[str]:
    """For each number below `count`, an int64 (1,): how many of the stops are not above it."""
    yield from _range(f"{out}_places", count)
    yield from _reshaped(f"{out}_rows", f"{out}_places", -1, 1)
    yield f"{out}_passed = GreaterOrEqual({out}_rows, {stops})"
    yield from (f"{out}_counted = Cast <to = 7> ({out}_passed)", _ints(f"{out}_axis", 1))
    yield f"{out} = ReduceSum <keepdims = 0> ({out}_counted, {out}_axis)"


def _range(out: str, count: str) -> Iterator[str]:
    """0, 1, … below `count`, an int64 (1,)."""
    yield f"{out}_stop = Squeeze({count})"
    for name, value in (("begin", 0), ("step", 1)):
        yield f"{out}_{name} = Constant <value_int = {value}> ()"
    yield f"{out} = Range({out}_begin, {out}_stop, {out}_step)"


def _matrix(out: str, blocks: str, elem_type: int, lanes: int, int8: bool) -> Iterator[str]:
    """What `in_blocks` was given, transposed: (columns, rows), of (rows / lanes, numbers of a block)."""
    if int8:
        yield from _scales(out, blocks, lanes)
        yield from (_ints(f"{out}_end", END), f"{out}_bytes = Slice({blocks}, {out}_cut, {out}_end, {out}_axis)")
        yield from (f"{out}_signed = Cast <to = 3> ({out}_bytes)", f"{out}_numbers = Cast <to = 1> ({out}_signed)")
        yield from _reshaped(f"{out}_unscaled", f"{out}_numbers", 0, -1, lanes)
        yield f"{out}_blocks = Mul({out}_unscaled, {out}_scales)"
    else:
        yield f"{out}_numbers = Cast <to = {elem_type}> ({blocks})"
        yield from _reshaped(f"{out}_blocks", f"{out}_numbers", 0, -1, lanes)
    yield f"{out}_turned = Transpose <perm = [1, 0, 2]> ({out}_blocks)"
    yield from _reshaped(out, f"{out}_turned", 0, -1)


def _scales(out: str, blocks: str, lanes: int) -> Iterator[str]:
    """(blocks, 1, lanes): floats, none below 0, from the 4 bytes of each; ONNX has no op for that before version 26."""
    yield from (_ints(f"{out}_axis", 1), _ints(f"{out}_begin", 0), _ints(f"{out}_cut", 4 * lanes))
    yield f"{out}_head = Slice({blocks}, {out}_begin, {out}_cut, {out}_axis)"
    yield from _reshaped(f"{out}_fours", f"{out}_head", 0, 1, lanes, 4)
    yield f"{out}_wide = Cast <to = 7> ({out}_fours)"
    yield from (_ints(f"{out}_places", 1, 2**8, 2**16, 2**24), f"{out}_placed = Mul({out}_wide, {out}_places)")
    yield from (_ints(f"{out}_last", -1), f"{out}_bits = ReduceSum <keepdims = 0> ({out}_placed, {out}_last)")
    yield from (_ints(f"{out}_one", FRACTION), f"{out}_fraction = Mod({out}_bits, {out}_one)")
    yield from (f"{out}_significand = Add({out}_fraction, {out}_one)", f"{out}_biased = Div({out}_bits, {out}_one)")
    yield from (_ints(f"{out}_bias", 127 + 23), f"{out}_exponent = Sub({out}_biased, {out}_bias)")
    yield from (f"{out}_float = Cast <to = 1> ({out}_significand)", f"{out}_power = Cast <to = 1> ({out}_exponent)")
    yield from (f"{out}_two = Constant <value_float = 2.0> ()", f"{out}_factor = Pow({out}_two, {out}_power)")
    yield f"{out}_scales = Mul({out}_float, {out}_factor)"


def _reshaped(out: str, x: str, *shape: int) -> Iterator[str]:
    yield _ints(f"{out}_shape", *shape)
    yield f"{out} = Reshape({x}, {out}_shape)"


def _ints(name: str, *values: int) -> str:
    return f"{name} = Constant <value_ints = [{', '.join(map(str, values))}]> ()"
