"""The packed linear against plain float64, forward and backward."""

import pytest
import torch
from olive.common.quant.nn import QuantLinear
from reference import pack

from phicli.checkpoints.int4 import Int4Linear, dequantize, unpack

IN, OUT, GROUP = 64, 24, 16


def packed_linear(bits: int, dtype: torch.dtype, bias: bool = True) -> tuple[Int4Linear, torch.Tensor]:
    """A linear and its weight in float64, computed number by number."""
    torch.manual_seed(bits)
    integers = torch.randint(0, 1 << bits, (OUT, IN))
    zeros = torch.randint(0, 1 << bits, (OUT, IN // GROUP))
    scales = torch.rand(OUT, IN // GROUP).half() / 8
    weight = torch.zeros(OUT, IN, dtype=torch.float64)
    for o in range(OUT):
        for i in range(IN):
            weight[o, i] = (int(integers[o, i]) - int(zeros[o, i // GROUP])) * float(scales[o, i // GROUP])
    linear = Int4Linear(IN, OUT, {"bias": torch.rand(OUT)} if bias else {}, dtype)
    linear.settle(pack(integers, bits), scales, zeros.to(torch.uint8), bits)
    return linear, weight


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dense", [False, True])
def test_forward_and_gradient_match_float64(bits, dense):
    linear, weight = packed_linear(bits, torch.float32)
    if dense:
        linear.keep_dense()
    x = torch.randn(3, 5, IN, requires_grad=True)
    gradient = torch.randn(3, 5, OUT)
    y = linear(x)
    y.backward(gradient)
    assert torch.allclose(y.double(), x.double() @ weight.t() + linear.bias.double(), atol=1e-4)
    assert torch.allclose(x.grad.double(), gradient.double() @ weight, atol=1e-4)
    assert torch.equal(linear.weight.double(), weight.float().double())


def test_bfloat16_rounds_the_weight_once():
    linear, weight = packed_linear(4, torch.bfloat16, bias=False)
    assert torch.equal(linear.weight, weight.float().bfloat16())
    x = torch.randn(4, IN, dtype=torch.bfloat16)
    expected = x.double() @ weight.float().bfloat16().double().t()
    assert (linear(x).double() - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_only_packed_tensors_are_held_between_forward_and_backward():
    linear, _ = packed_linear(4, torch.float32)
    held = []
    x = torch.randn(2, IN, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.nbytes) or t, lambda t: t):
        linear(x)
    assert 0 < sum(held) <= linear.qweight.nbytes + linear.scales.nbytes + linear.qzeros.nbytes
    assert sum(held) < 4 * IN * OUT / 4


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_agrees_with_olives_packing(bits, symmetric):
    theirs = QuantLinear.from_module(torch.nn.Linear(IN, OUT), bits=bits, symmetric=symmetric, group_size=GROUP)
    zeros = unpack(theirs.qzeros, bits) if theirs.qzeros is not None else torch.full((OUT, IN // GROUP), 1 << bits - 1)
    ours = dequantize(theirs.qweight, theirs.scales, zeros, bits, torch.float32)
    assert torch.allclose(ours, theirs.unpack_and_dequantize(theirs.qweight, theirs.scales, theirs.qzeros), atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_forward_and_gradient_match_float64():
    linear, weight = packed_linear(4, torch.bfloat16, bias=False)
    linear.cuda()
    x = torch.randn(64, IN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    y = linear(x)
    y.float().sum().backward()
    rounded = weight.float().bfloat16().double()
    assert torch.allclose(y.cpu().double(), x.detach().cpu().double() @ rounded.t(), atol=0.05, rtol=0.02)
    assert torch.allclose(x.grad.cpu().double(), rounded.sum(0).expand(64, IN), atol=0.05, rtol=0.02)
