"""The ops of lora_op.c once more, as functions of ONNX's own ops, which a model carries with it.

onnxruntime takes the library's kernels where it is registered, and puts these functions' nodes in the ops' places where
it is not: so a model with fused adapters runs wherever onnxruntime does, without a compiler. As in `masked`, h has the
columns of all adapters, and 0 in those of the others. What follows from constants alone, which is all of A and B,
onnxruntime computes once, when the model is loaded.
"""

from collections.abc import Iterator, Sequence
from typing import Any

END = 2**62
FRACTION = 2**23  # of a float: its bits are sign, exponent + 127, and 23 of the fraction


def functions(domain: str, opset: int, ranks: Sequence[int], elem_type: int, lanes: int, int8: bool) -> list[Any]:
    """LoraDown, LoraUp and LoraGatedUp, a FunctionProto each.

    Args:
        opset: version of ONNX's ops in the model. ranks: of each adapter, as the ops' attribute has them.
        elem_type: of the activations, and here of h too. lanes: of B, see `in_blocks`; A has one.
    """
    from onnx import parser

    gate, up = ([*_b(name, ranks, elem_type, lanes, int8)] for name in ("b", "b2"))
    bodies = {
        "LoraDown <ranks> (ids, x, a) => (h)": _down(ranks, elem_type, int8),
        "LoraUp <ranks> (ids, h, base, b) => (y)": [*gate, "change = MatMul(h, b_matrix)", "y = Add(base, change)"],
        "LoraGatedUp <ranks> (ids, h, base, b, base2, b2) => (y)": [
            *gate, "change = MatMul(h, b_matrix)", "gate = Add(base, change)",
            *up, "change2 = MatMul(h, b2_matrix)", "up = Add(base2, change2)",
            "sigmoid = Sigmoid(gate)", "silu = Mul(gate, sigmoid)", "y = Mul(silu, up)"],
    }
    head = f'<domain: "{domain}", opset_import: ["": {opset}]>'
    return [parser.parse_function("\n".join([head, name, "{", *lines, "}"])) for name, lines in bodies.items()]


def _down(ranks: Sequence[int], elem_type: int, int8: bool) -> Iterator[str]:
    yield from _reshaped("a_rows", "a", sum(ranks), -1)
    yield from _matrix("a_matrix", "a_rows", elem_type, 1, int8)
    yield "all = MatMul(x, a_matrix)"
    yield _ints("owner", *(number for number, rank in enumerate(ranks, 1) for _ in range(rank)))
    yield from _reshaped("id", "ids", -1, 1, 1)
    yield "owned = Equal(id, owner)"
    yield f"mask = Cast <to = {elem_type}> (owned)"
    yield "h = Mul(all, mask)"


def _b(name: str, ranks: Sequence[int], elem_type: int, lanes: int, int8: bool) -> Iterator[str]:
    """(sum of ranks, outputs), from each adapter's part, which is in blocks of `lanes` outputs."""
    lengths = [rank + 4 * int8 for rank in ranks]  # of an output
    parts = [f"{name}_{number}" for number in range(len(ranks))]
    yield from _reshaped(f"{name}_parts", name, sum(lengths), -1)
    yield _ints(f"{name}_lengths", *lengths)
    yield f"{', '.join(parts)} = Split <axis = 0> ({name}_parts, {name}_lengths)"
    for part, length in zip(parts, lengths, strict=True):
        yield from _reshaped(f"{part}_blocks", part, -1, lanes * length)
        yield from _matrix(f"{part}_matrix", f"{part}_blocks", elem_type, lanes, int8)
    yield f"{name}_matrix = Concat <axis = 0> ({', '.join(f'{part}_matrix' for part in parts)})"


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
