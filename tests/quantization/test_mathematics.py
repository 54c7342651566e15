"""Grid, search, rounding and packing against plain float64 versions that loop as the papers write it."""

import pytest
import torch
from reference import unpack_columns

from phicli.checkpoints.awq import low_first, pack_columns, pack_linear
from phicli.checkpoints.int4 import unpack
from phicli.quantization.gram import GramSum
from phicli.quantization.grid import GridShape, fit_grid, round_to_grid, to_integers, to_weights
from phicli.quantization.rounding import DAMPING, _inverse_factor, round_block_plain, round_gptq, round_nearest
from phicli.quantization.search import output_error, search_clip, search_scale

SHAPE = GridShape(4, 32)


@pytest.fixture
def problem():
    """A weight (24, 96), inputs (tokens, 96) with a few loud channels, and their Gram matrix."""
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 96, generator=g) * 0.05
    x = torch.randn(400, 96, generator=g) @ torch.randn(96, 96, generator=g) / 10
    x[:, [3, 40, 70]] *= 12
    return weight, x, x.t() @ x / len(x)


def quantized_plainly(weight, low, high):
    """Round one group of float64 weights on the grid of [low, high]."""
    scale = max((max(high, 0) - min(low, 0)) / 15, 1e-5)
    scale = float(torch.tensor(scale).half())
    zero = min(max(round(-min(low, 0) / scale), 0), 15)
    return [(min(max(round(w / scale) + zero, 0), 15) - zero) * scale for w in weight]


def test_round_to_grid_is_the_plain_one(problem):
    weight, _, _ = problem
    ours = round_to_grid(weight, SHAPE)
    for row in range(3):
        for start in range(0, 96, 32):
            group = weight[row, start : start + 32].double().tolist()
            plain = torch.tensor(quantized_plainly(group, min(group), max(group)))
            assert torch.allclose(ours[row, start : start + 32], plain, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_zero_is_on_the_grid_when_all_weights_have_one_sign(sign):
    weight = sign * (torch.rand(4, 32) + 1)
    low, high = weight.aminmax(dim=-1)
    scale, zero = fit_grid(low[:, None], high[:, None], SHAPE)
    assert torch.equal(to_weights(zero.expand(4, 32), scale, zero, SHAPE), torch.zeros(4, 32))
    assert (round_to_grid(weight, SHAPE) - weight).abs().max() <= scale.max() / 2 + 1e-6


def test_symmetric_grid_has_its_zero_in_the_middle(problem):
    weight, _, _ = problem
    shape = GridShape(4, 32, symmetric=True)
    low, high = shape.groups(weight).aminmax(dim=-1)
    scale, zero = fit_grid(low, high, shape)
    assert torch.equal(zero, torch.full_like(zero, 8))
    error = (to_weights(to_integers(weight, scale, zero, shape), scale, zero, shape) - weight).abs()
    assert (error <= scale.repeat_interleave(32, 1) * 0.5 + 1e-6).all()


def test_output_error_is_that_over_the_tokens(problem):
    weight, x, gram = problem
    difference = round_to_grid(weight, SHAPE) - weight
    plain = (x.double() @ difference.double().t()).square().mean(0)
    assert torch.allclose(output_error(difference, gram).double(), plain, rtol=1e-4)


@pytest.mark.parametrize("width", [1, 6, 30, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_sum_is_that_over_the_tokens(width, dtype):
    x = torch.randn(50, width, generator=torch.Generator().manual_seed(4)).to(dtype)
    ours = GramSum(width, 50, x.device)
    for part in x.split(17):
        ours.add(part)
    gram, magnitude = ours.means()
    plain = sum(torch.outer(t, t) for t in x.double()) / 50
    assert torch.allclose(gram.double(), plain, atol=1e-5) and torch.equal(gram, gram.t())
    assert torch.allclose(magnitude.double(), x.double().abs().mean(0), atol=1e-5)


def test_inverse_factor(problem):
    _, _, gram = problem
    upper = _inverse_factor(gram).double()
    damped = gram.double() + torch.eye(96) * DAMPING * gram.diagonal().double().mean()
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.t() @ upper @ damped, torch.eye(96, dtype=torch.float64), atol=1e-3)


def test_search_scale_picks_what_a_loop_over_tokens_picks(problem):
    """AutoAWQ's way: every candidate runs the tokens through the rounded layer."""
    weight, x, gram = problem
    ours = search_scale(weight, gram, x.abs().mean(0), SHAPE)
    w, t = weight.double(), x.double()
    groups = w.abs().view(24, 3, 32)
    size = (groups / (groups.amax(-1, keepdim=True) + 1e-6)).view(24, 96).mean(0)
    best = None
    for step in range(20):
        scale = (t.abs().mean(0).pow(step / 20) / (size.pow(1 - step / 20) + 1e-4)).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        rounded = round_to_grid((w * scale).float(), SHAPE).double() / scale
        error = (t @ (rounded - w).t()).square().sum().item()
        if best is None or error < best[0]:
            best = (error, scale)
    assert torch.allclose(ours.double(), best[1], rtol=1e-4)
    unscaled = (t @ (round_to_grid(weight, SHAPE).double() - w).t()).square().sum().item()
    assert best[0] < 0.7 * unscaled


def test_search_scale_shares_where_channels_are_one(problem):
    weight, x, gram = problem
    share = torch.arange(96) // 32 * 16 + torch.arange(96) % 16
    scale = search_scale(weight, gram, x.abs().mean(0), SHAPE, share)
    for channel in share.unique():
        assert scale[share == channel].unique().numel() == 1


def test_search_clip_picks_what_a_plain_loop_picks(problem):
    weight, x, gram = problem
    scale, _ = search_clip(weight, gram, SHAPE)
    for row in (0, 7):
        for group in range(3):
            part = weight[row, group * 32 : group * 32 + 32].double()
            tokens = x[:, group * 32 : group * 32 + 32].double()
            errors = []
            for step in range(10):
                factor = 1 - step / 20
                plain = torch.tensor(quantized_plainly(part.tolist(), float(part.min()) * factor,
                                                       float(part.max()) * factor))
                errors.append((tokens @ (plain - part)).square().sum().item())
            factor = 1 - errors.index(min(errors)) / 20
            expected = (float(part.max()) - float(part.min())) * factor / 15
            assert float(scale[row, group]) == pytest.approx(expected, rel=2e-3)


def gptq_plainly(weight, gram, scale, zero, order, damping=0.01):
    """GPTQ one column at a time in float64, the inverse Hessian updated by elimination after each column."""
    w, h = weight.double().clone(), gram.double().clone()
    h += torch.eye(len(h), dtype=torch.float64) * damping * h.diagonal().mean()
    h, w = h[order][:, order], w[:, order]
    inverse = torch.linalg.inv(h)
    out = torch.empty_like(w)
    for c in range(w.shape[1]):
        group = int(order[c]) // 32
        s, z = scale[:, group].double(), zero[:, group].double()
        out[:, c] = (torch.round(w[:, c] / s) + z).clamp(0, 15)
        error = (w[:, c] - (out[:, c] - z) * s) / inverse[c, c]
        w[:, c:] -= error[:, None] * inverse[c, c:]
        inverse = inverse - inverse[:, c : c + 1] @ inverse[c : c + 1] / inverse[c, c]
    return out[:, torch.argsort(order)]


def test_gptq_is_the_plain_algorithm(problem):
    weight, _, gram = problem
    scale, zero = search_clip(weight, gram, SHAPE)
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    ours = round_gptq(weight, gram, scale, zero, SHAPE)
    plain = gptq_plainly(weight, gram, scale, zero, order)
    assert (ours.double() == plain).float().mean() > 0.99  # float32 may fall the other way on a tie
    nearest = round_nearest(weight, gram, scale, zero, SHAPE)

    def error(integers):
        return float(output_error(to_weights(integers, scale, zero, SHAPE) - weight, gram).sum())

    assert error(ours) == pytest.approx(error(plain.float()), rel=0.02)
    assert error(ours) < 0.6 * error(nearest)


def test_gptq_with_dead_and_dependent_channels(problem):
    weight, x, _ = problem
    x = x.clone()
    x[:, 5] = 0
    x[:, 6] = x[:, 7]
    gram = x.t() @ x / len(x)
    scale, zero = search_clip(weight, gram, SHAPE)
    integers = round_gptq(weight, gram, scale, zero, SHAPE)
    assert integers.isfinite().all() and integers.min() >= 0 and integers.max() <= 15
    zeros = round_gptq(weight, torch.zeros_like(gram), scale, zero, SHAPE)  # nothing known: as good as nearest
    assert torch.equal(zeros, round_nearest(weight, gram, scale, zero, SHAPE))


@pytest.mark.gpu
def test_triton_block_is_the_plain_block():
    from phicli.quantization.rounding_triton import round_block

    g = torch.Generator().manual_seed(2)
    weight = torch.randn(300, 384, generator=g).cuda()
    upper = (torch.triu(torch.randn(384, 384, generator=g)) * 0.02 + torch.eye(384)).cuda()
    scale, zero = torch.rand(300, 12, generator=g).cuda() * 0.1 + 0.1, torch.full((300, 12), 7.0).cuda()
    groups = torch.randint(0, 12, (128,), generator=g).cuda()
    here, both, errors = slice(128, 256), [], []
    for function in (round_block, round_block_plain):
        rounded = weight.clone()
        errors.append(function(rounded[:, here], upper[here, here], scale, zero, groups, 15))
        both.append(rounded[:, here])
        assert torch.equal(rounded[:, :128], weight[:, :128]) and torch.equal(rounded[:, 256:], weight[:, 256:])
    assert (both[0] == both[1]).float().mean() > 0.999
    same = (both[0] == both[1]).all(1)
    assert same.float().mean() > 0.98 and torch.allclose(errors[0][same], errors[1][same], atol=1e-3)


def test_packing_round_trip_and_known_word():
    columns = torch.arange(16).repeat(3, 1)
    words = pack_columns(columns)
    assert words.dtype == torch.int32 and words.shape == (3, 2)
    assert words[0, 0].item() & 0xFFFFFFFF == 0x75316420  # places hold columns 0 2 4 6 1 3 5 7
    assert torch.equal(unpack_columns(words), columns.double())
    assert torch.equal(unpack(low_first(words), 4)[:, :3], columns.t())
    g = torch.Generator().manual_seed(0)
    integers = torch.randint(0, 16, (24, 96), generator=g).float()
    scale = torch.rand(24, 3, generator=g).half().float()
    zero = torch.randint(0, 16, (24, 3), generator=g).float()
    packed = pack_linear(integers, scale, zero)
    for name, whole in (("qweight", integers), ("qzeros", zero)):
        assert torch.equal(unpack_columns(packed[name]).t(), whole.double())
        assert torch.equal(unpack(low_first(packed[name]), 4)[:, : whole.shape[1]], whole)
    assert torch.equal(packed["scales"].t().float(), scale)
