"""The group size that fits: chosen, or given and then checked."""

from pathlib import Path

import pytest

from phicli.errors import BadInput
from phicli.quantization.groups import choose_group_size


def headers(**inputs: tuple[int, int]) -> dict:
    """Of one layer's linears, by name: (outputs, inputs)."""
    return {f"model.layers.0.mlp.{name}.weight": {"shape": list(shape)} for name, shape in inputs.items()}


SMOLLM2 = headers(q_proj=(576, 576), down_proj=(576, 1536))


@pytest.mark.parametrize(("linears", "awq", "size"), [
    (headers(q=(256, 256), d=(256, 512)), True, 128), (SMOLLM2, True, 64), (SMOLLM2, False, 64),
    (headers(q=(96, 96), d=(96, 256)), True, 32), (headers(q=(48, 48), d=(48, 96)), False, 16),
])
def test_the_largest_that_divides_all(linears, awq, size):
    found, remarks = choose_group_size(linears, None, (), awq, Path())
    assert found == size and len(remarks) == (size != 128)
    assert choose_group_size(linears, size, (), awq, Path()) == (size, [])  # given, it is nothing to speak of


def test_what_is_skipped_does_not_count():
    assert choose_group_size(SMOLLM2, None, ("q_proj",), True, Path()) == (128, [])


def test_awq_leaves_the_fewest_weights_in_float():
    linears = headers(big=(512, 512), odd=(8, 100), narrow=(20, 256))
    size, (remark,) = choose_group_size(linears, None, (), True, Path())
    assert size == 128 and remark.startswith("2 of 3 linears") and remark.endswith(": narrow, odd")


@pytest.mark.parametrize(("linears", "given", "awq", "hint"), [
    (SMOLLM2, 128, True, "--group-size 64"), (SMOLLM2, 128, False, "--group-size 64"),
    (headers(big=(512, 512), odd=(8, 100)), None, False, "--algorithm awq"),
    (headers(odd=(8, 100)), None, True, "another model"), (headers(odd=(8, 100)), None, False, "another model"),
    (headers(narrow=(20, 256)), None, True, "another model"),
])
def test_what_is_refused(linears, given, awq, hint):
    with pytest.raises(BadInput, match="does not divide") as e:
        choose_group_size(linears, given, (), awq, Path())
    assert hint in e.value.hint
