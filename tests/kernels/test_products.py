"""MatMulNBitsRows without a GPU: its kernels, their threads emulated, alone and behind the op in onnxruntime."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from emulated import check_alone, check_found, needs_compiler, with_driver
from onnx import TensorProto, helper
from products_here import PRODUCTS, difference, product

from phicli.hardware.driver import gpu_count
from phicli.inference.products import take_rows
from phicli.kernels import build

HERE = Path(__file__).parent


WARPS, GROUPS = "-DWARPGROUPS=0", "-DWARPGROUPS=1"  # mma.sync, and wgmma, which Hopper has


@needs_compiler
@pytest.mark.parametrize("flag", [WARPS, GROUPS])
def test_kernels_give_the_sums_of_float64_and_touch_only_what_is_theirs(flag, tmp_path):
    check_alone("nbits", tmp_path, flag)


@needs_compiler
@pytest.mark.parametrize(("flag", "planted"), [
    (WARPS, ("nbits_multiply.cu", "  __syncthreads();", "  ")),  # a warp reads x before the others have loaded it
    (WARPS, ("nbits.cu", "  wait_for_previous();\n  load_x", "  load_x")),  # or before it is there
    (GROUPS, ("nbits_multiply.cu", "      wait_for_groups<1>();", "  ")),  # weights are replaced that are still read
    (GROUPS, ("nbits_multiply.cu", "{ wait_for_groups<0>(); }", "{}")),  # sums are read that are not there yet
])
def test_a_kernel_that_waits_for_too_little_is_found(flag, planted, tmp_path):
    check_found("nbits", tmp_path, planted, flag)


@needs_compiler
@pytest.mark.skipif(bool(build.missing("cpu")), reason=f"{build.missing('cpu')}")
def test_the_op_launches_them_with_what_they_ask_for(tmp_path):
    library, driver = with_driver("nbits", "nbits_rows_op.c", tmp_path, "-DMATMUL_ROWS")
    done = subprocess.run([sys.executable, HERE / "products_here.py", library, driver], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) == PRODUCTS and max(found) < 5e-3, found


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_count(), reason="no NVIDIA GPU")
def test_products_on_a_gpu_are_those_of_a_cpu():
    onnxruntime.preload_dlls()
    library, rng = str(build.ops_library("cuda", matmul=True)), np.random.default_rng(0)
    assert max(difference(rng, number, library, "CUDAExecutionProvider") for number in range(96)) < 5e-3


def test_products_that_the_op_is_not_for_stay():
    def model(**changed):
        made = product(np.random.default_rng(0), 64, 64, 4, 32, True)
        for attribute in made.graph.node[0].attribute:
            if attribute.name in changed:
                attribute.i = changed[attribute.name]
        return made

    whole = model()
    whole.graph.node.append(helper.make_node("Identity", ["y2"], ["out"]))
    whole.graph.output[0].name = "out"
    whole.graph.value_info.append(helper.make_tensor_value_info("y1", TensorProto.FLOAT16, ["batch", "tokens", 64]))
    assert take_rows(whole) == 2 and [value.name for value in whole.graph.value_info] == ["y1", "y2"]
    assert whole.graph.value_info[1].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not take_rows(whole)
    for changed in ({"N": 44}, {"K": 72}, {"bits": 2}, {"block_size": 16}):
        assert take_rows(model(**changed)) == 1, changed
    ordered = model()
    ordered.graph.node[0].input.append("order")
    assert take_rows(ordered) == 1
    floats = model()
    for tensor in floats.graph.initializer:
        if tensor.name == "s1":
            tensor.data_type = 1
    assert take_rows(floats) == 1
