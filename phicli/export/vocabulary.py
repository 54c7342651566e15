"""The two matrices of a vocabulary in integers: the embedding and the output projection (lm_head), one where a model
ties them.

genai's builder of 0.18 has no embedding in 8 bits and does not share one with a head in 8 bits; onnxruntime's
quantizer, which it leaves the head to, makes four copies of it. Here a few rows are rounded at a time.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from phicli.export.repacking import TENSORRT, Projection
from phicli.quantization.grid import GridShape, fit_grid, to_integers
from phicli.workflow.patching import replaced

BITS = {"int4": 4, "int8": 8}
GROUPS = {4: (32, 16), 8: (128, 64, 32, 16)}  # numbers of a row with one scale: the largest that fits
ROWS = 4096  # that are rounded at a time
HEAD = "lm_head.MatMulNBits"  # as the builder names the tensors of a head in integers


@contextlib.contextmanager
def rounded_vocabulary(embeddings: str, head: str) -> Iterator[None]:
    """While the block runs, the builder makes embedding and head of these precisions: "int4", "int8", "float".

    It is left alone with what is to stay in float, is quantized already, or has rows of no multiple of 16 numbers.
    """
    from onnxruntime_genai.models import builder

    rounded: list[Projection] = []  # of the head, once the embedding has been made of it

    def make_embedding_lookup(self: Any, embedding: Tensor, basename: str, lm_head: Any) -> str:
        table = round_rows(embedding, BITS[embeddings]) if embeddings in BITS else None
        if table is None:
            return original_lookup(self, embedding, basename, lm_head)
        weight = getattr(lm_head, "weight", None)
        shared = embeddings == head and weight is not None and torch.equal(weight, embedding)
        if shared:
            rounded.append(table)
        return _look_up(self, table, basename, HEAD if shared else "model.embed_tokens")

    def make_lm_head(self: Any, lm_head: Any) -> None:
        if head in BITS and not hasattr(lm_head, "qweight"):
            table = rounded.pop() if rounded else round_rows(lm_head.weight, BITS[head])
            if table is not None:
                table.bias, lm_head = lm_head.bias, table.signed() if self.ep == TENSORRT else table
        original_head(self, lm_head)

    with (replaced(builder.Model, "make_embedding_lookup", make_embedding_lookup) as original_lookup,
          replaced(builder.Model, "make_lm_head", make_lm_head) as original_head):
        yield


def round_rows(weight: Tensor, bits: int) -> Projection | None:
    """A matrix (rows, numbers) rounded to nearest, zero points in the middle; None where no group size fits.

    Zero points of their own gain nothing in 8 bits, and in 4 onnxruntime's GatherBlockQuantized looks for them in
    other places on CUDA than on a CPU.
    """
    group = next((size for size in GROUPS[bits] if weight.shape[1] % size == 0), None)
    if group is None:
        return None
    parts = [_packed(rows.detach().float(), GridShape(bits, group, symmetric=True)) for rows in weight.split(ROWS)]
    integers, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return Projection(integers, scales.view(-1), None, None, bits)


def _packed(rows: Tensor, shape: GridShape) -> tuple[Tensor, Tensor]:
    """Integers (rows, groups, bytes) as MatMulNBits has them, and scales (rows, groups)."""
    scale, zero = fit_grid(*shape.groups(rows).aminmax(dim=-1), shape)
    integers = shape.groups(to_integers(rows, scale, zero, shape).to(torch.uint8))
    return integers if shape.bits == 8 else integers[..., ::2] | integers[..., 1::2] << 4, scale


def _look_up(builder: Any, table: Projection, basename: str, tensors: str) -> str:
    """Put the look-up into the builder's graph; returns the name of its output.

    The integers keep the three dimensions that MatMulNBits wants, so that it can read the same constant.

    tensors: beginning of the names of the constants; those of the head come into the graph with it.
    """
    rows, groups, _ = table.qweight.shape
    integers, scales, gather, flat = (f"{tensors}.qweight", f"{tensors}.scales", f"{basename}/GatherBlockQuantized",
                                      f"{basename}/Reshape")
    if tensors != HEAD:
        builder.make_initializer(table.qweight, integers)
        builder.make_initializer(table.scales, scales, to=builder.io_dtype)
    column = f"{basename}/scales/Reshape"
    builder.make_reshape(column, [scales, f"/model/constants/INT64/[{rows}, {groups}, 1]"], dtype=builder.io_dtype,
                         shape=[rows, groups, 1])
    builder.make_node("GatherBlockQuantized", [integers, builder.input_names["input_ids"], f"{column}/output_0"],
                      [f"{gather}/output_0"], name=gather, domain="com.microsoft", bits=table.bits,
                      block_size=table.group_size, gather_axis=0, quantize_axis=2)
    shape = builder.make_hidden_state_shape()
    builder.make_value(f"{gather}/output_0", builder.io_dtype, shape=[*shape[:-1], groups, table.group_size])
    builder.make_reshape(flat, [f"{gather}/output_0", f"/model/constants/INT64/[0, 0, {table.in_features}]"],
                         dtype=builder.io_dtype, shape=shape)
    return f"{flat}/output_0"
