"""Attention of our own with a cache in int8: what it computes, beside float64 and onnxruntime's own op."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from attention_here import ON_CUDA, Attention, check
from emulated import check_alone, check_found, needs_compiler, with_driver

from phicli.export.portable_cache import mixing
from phicli.hardware.driver import gpu_count
from phicli.kernels.build import missing, ops_library

pytestmark = pytest.mark.skipif(bool(missing("cpu")), reason=f"{missing('cpu')}")
HERE = Path(__file__).parent


@cache
def sessions(attention: Attention) -> list[onnxruntime.InferenceSession]:
    library = ops_library("cpu")
    return [attention.session(library, ours) for ours in (True, False)]


KINDS = [Attention(), Attention(heads=3, kv_heads=3, size=16, packed=False), Attention(turned=32, size=32),
         Attention(heads=7, kv_heads=1, size=80, turned=32, packed=False),
         Attention(turned=64, size=64, interleaved=True), Attention(window=5),
         Attention(window=200, turned=64, size=96), Attention(softcap=2.0, size=128, window=100),
         Attention(heads=2, kv_heads=1, size=512)]


FLOATS = [replace(attention, floats=True) for attention in KINDS]


@pytest.mark.parametrize("attention", [*KINDS, *FLOATS], ids=str)
@pytest.mark.parametrize("in_place", [True, False])
def test_attention_is_what_it_says(attention, in_place):
    check(attention, *sessions(attention), in_place)


def cached(attention: Attention, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, ...]:
    shape = rows, attention.kv_heads, 1300, attention.line
    if attention.floats:
        return tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    found = tuple(rng.integers(-127, 128, shape).astype(np.int8) for _ in range(2))
    for side in found:
        side[..., -2:] = np.array([0, 60], np.int8)
    return found


@pytest.mark.parametrize("floats", [True, False])
def test_a_row_rounds_the_same_alone_as_beside_others(floats):
    attention, rng = Attention(turned=32, floats=floats), np.random.default_rng(1)
    session, _ = sessions(attention)
    past = cached(attention, rng, 3)
    new = tuple(rng.standard_normal((3, 1, n, 32)).astype(np.float32) for n in (4, 2, 2))
    lengths = [1200, 3, 700]
    together = session.run(None, attention.feeds(new, past, lengths, 1300))[0]
    for row in range(3):
        one = slice(row, row + 1)
        alone = session.run(None, attention.feeds(tuple(x[one] for x in new), tuple(p[one] for p in past),
                                                  lengths[one], lengths[row]))[0]
        assert (alone[0] == together[row]).all()


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize(("heads", "window", "tokens"), [
    (2, -1, 8), (6, -1, 8), (14, -1, 8), (6, -1, 40), (6, 600, 40)])
def test_tokens_of_a_run_round_as_they_do_one_by_one(floats, heads, window, tokens):
    """So an answer does not depend on how much of its prompt was kept from an earlier one."""
    attention = Attention(turned=32, floats=floats, heads=heads, window=window)
    (session, _), rng = sessions(attention), np.random.default_rng(3)
    past = cached(attention, rng, 1)
    new = tuple(rng.standard_normal((1, tokens, n, 32)).astype(np.float32) for n in (heads, 2, 2))
    together, *_ = session.run(None, attention.feeds(new, past, [1020 + tokens], 1300))
    for token in range(tokens):
        one, *past = session.run(None, attention.feeds(tuple(x[:, token : token + 1] for x in new), past,
                                                       [1021 + token], 1300))
        assert (one[:, 0] == together[:, token]).all()


@pytest.mark.parametrize("attention", [KINDS[1], Attention(turned=32, window=5)], ids=str)
def test_without_the_library_the_function_does_the_same(attention):
    """Each goes on from the other's cache."""
    rng, ours = np.random.default_rng(2), sessions(attention)[0]
    portable = attention.session(None)
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
                one, two = (attention.read(cached)[:, :, :length] for cached in (one, two))
                assert np.abs(one - two).max() <= 1.01 * np.abs(one).max() / 127
            assert np.abs(y - other).max() < 0.05 * np.abs(new[2]).max() + 0.02
            past = tuple(others)


@pytest.mark.parametrize("size", [16, 80, 96, 512])
def test_channels_are_mixed_evenly_and_back(size):
    mixed = mixing(size)
    assert np.abs(mixed @ mixed - np.eye(size)).max() < 1e-6
    assert (np.count_nonzero(mixed, axis=0) == size & -size).all() and len(np.unique(np.abs(mixed[mixed != 0]))) == 1


@needs_compiler
def test_kernels_of_cuda_give_the_sums_of_float64_and_touch_only_what_is_theirs(tmp_path):
    check_alone("attention", tmp_path)


@needs_compiler
@pytest.mark.parametrize("planted", [
    ("attention.cu", "    wait_for_copies();\n", ""),  # tokens that have not come yet
    ("attention.cu", "    __syncthreads();\n", ""),  # or that others have not loaded yet
    ("attention_rows.cu", "total[side] *= kept[side]", "total[side] *= 1.f"),  # weights beside another largest score
    ("attention.cu", "each * of.splits < end - begin;", "false;"),  # tokens that no warp takes
    ("attention.cu", "at < own.end)", "at < own.end - LINES)"),  # or that a warp of a block leaves out
])
def test_a_kernel_of_cuda_that_is_wrong_is_found(planted, tmp_path):
    check_found("attention", tmp_path, planted)


@needs_compiler
def test_the_op_of_cuda_launches_them_with_what_they_ask_for(tmp_path):
    library, driver = with_driver("attention", "attention_op.c", tmp_path)
    done = subprocess.run([sys.executable, HERE / "attention_here.py", library, driver], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_count(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("attention", ON_CUDA, ids=str)
@pytest.mark.parametrize("in_place", [True, False])
def test_attention_on_a_gpu_is_what_it_says(attention, in_place):
    onnxruntime.preload_dlls()
    ours = attention.session(ops_library("cuda"), provider="CUDAExecutionProvider")
    check(attention, ours, attention.session(None, ours=False), in_place, "cuda")


@pytest.mark.parametrize("attention", ON_CUDA, ids=str)
def test_without_the_library_the_function_does_the_same_in_fp16(attention):
    check(attention, attention.session(None), attention.session(None, ours=False), False, rough=True)
