"""The engine on a GPU: rows with adapters beside each other, and each alone."""

import pytest
from onnx_checkpoints import nearest_awq, random_adapter
from test_engine_batch import requests, together, tokens

from phicli import Session, optimize
from phicli.hardware.driver import gpu_count
from phicli.inference.engine import Engine, Request

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_count(), reason="no NVIDIA GPU")]
LINEARS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("engine_gpu")
    adapters = [f"{name}={random_adapter(tiny, root / name, r=rank, lora_alpha=2 * rank, target_modules=LINEARS)}"
                for name, rank in (("cooking", 16), ("travel", 64))]
    return optimize(root=root, base=str(nearest_awq(tiny, root / "awq")), adapters=adapters, device="cuda",
                    adapter_layout="fused").folder


@pytest.mark.parametrize("kernels", ["onnxruntime", "phicli"])
def test_rows_get_what_they_get_alone(folder, kernels):
    with Engine(folder, kernels=kernels, max_batch=8, fixed_batch=True, prefix_cache=False) as engine:
        assert engine.why_alone is None
        engine.add_adapter("late", folder.parent / "cooking")
        asked = requests(engine, 24, 1)
        alone = [tokens(engine.generate(request)) for request in asked]
        assert together(engine, asked, 1) == alone


def test_guesses_run_as_graphs_too(folder):
    """Products of several tokens round in fp16 otherwise than those of one."""
    with Engine(folder, max_batch=2, speculate=7) as guessing, Engine(folder, max_batch=2, speculate="off") as plain:
        for adapter in (None, "travel"):
            text = "the old temple near the sea, " * 9
            ids = plain.codec_of(adapter).encode_chat([{"role": "user", "content": text}])
            request = Request(ids, adapter, max_tokens=250, ignore_eos=True)
            own = [*guessing.generate(request)]
            assert tokens(own)[:8] == tokens(plain.generate(request))[:8]
            assert own[-1].accepted_tokens > 10 and own[-1].completion_tokens == 250  # what a random model repeats
        rows = guessing._scheduler._rows
        assert not rows._captures or any(tokens_of_run == 8 for _, _, tokens_of_run, *_ in rows._graphs)


@pytest.mark.parametrize("kernels", ["onnxruntime", "phicli"])
def test_most_tokens_are_those_of_a_session(folder, kernels):
    """Products of several rows round in fp16 otherwise than those of one."""
    with Engine(folder, kernels=kernels, max_batch=8) as engine, Session(folder) as session:
        same = total = 0
        for request in requests(engine, 12, 2, ignore_eos=True):
            mine = tokens(engine.generate(request))
            generator = session.generator(len(request.ids) + len(mine), request.adapter)
            generator.append_tokens(request.ids)
            same += generator.next_token() == mine[0]
            total += 1
        assert same >= total - 1
        assert engine.stats().generated_tokens
