"""The key/value cache in int8: what it changes of the answers, what it takes, how its scales are found."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_checkpoints import random_adapter

from phicli import Conversation, Session, optimize
from phicli.errors import UsageError
from phicli.evaluation.figures import Agreement, log_softmax
from phicli.export.kv_cache import Ranges
from phicli.export.slots import MODEL
from phicli.hardware.driver import gpu_count

KEYS = "present.0.key"


@pytest.fixture(scope="module")
def rounded(two_graphs, tmp_path_factory):
    """`two_graphs` with its cache in int8."""
    root = tmp_path_factory.mktemp("int8_cache")
    adapters = [f"{name}={two_graphs / name}" for name in ("cooking", "travel")]
    return optimize(root=root, base=str(two_graphs / "awq"), adapters=adapters, device="cpu", activations="fp32",
                    head="float", adapter_layout="fused", kv_cache="int8").folder


def agreement(one: np.ndarray, other: np.ndarray) -> Agreement:
    found = Agreement()
    found.add(log_softmax(one), log_softmax(other))
    return found


def changed(plain: Path, rounded: Path, text: Path, adapter: str | None) -> Agreement:
    """Over a text that is longer than those of the calibration."""
    with Session(plain) as one, Session(rounded) as other:
        ids = one.codec.encode_text(text.read_text(encoding="utf-8"))[:1200]
        return agreement(one.logits(ids, adapter), other.logits(ids, adapter))


# Random adapters make keys and values larger; with the model's own scales the KL of this one is 0.6.
@pytest.mark.parametrize(("adapter", "most"), [(None, 8e-3), ("travel", 3e-2)])
def test_it_hardly_changes_the_answers(two_graphs, rounded, data_file, adapter, most):
    found = changed(two_graphs / "onnx-ao", rounded, data_file, adapter)
    assert 0 < found.kl < most and found.top1 > 0.9


def test_an_adapter_that_comes_later_is_measured_too(two_graphs, rounded, tiny, data_file, tmp_path):
    """Random, so that its keys and values are much larger than the model's own."""
    loud = random_adapter(tiny, tmp_path / "loud", r=8, lora_alpha=64, target_modules=["qkv_proj"])
    folders = []
    for source, kind in ((two_graphs / "onnx-ao", "float"), (rounded, "int8")):
        shutil.copytree(source, tmp_path / kind)
        before = (tmp_path / kind / "base.onnx").stat().st_ino
        folders.append(optimize(root=tmp_path, output=tmp_path / kind, base=str(two_graphs / "awq"), device="cpu",
                                adapters=[f"loud={loud}"], activations="fp32", head="float", adapter_layout="fused",
                                kv_cache=kind).folder)
    assert (folders[1] / "base.onnx").stat().st_ino != before
    assert changed(*folders, data_file, "loud").kl < 3e-2
    assert changed(*folders, data_file, "travel").kl < 3e-2


def test_what_lies_in_memory_is_int8(rounded):
    for name in ("base.onnx", "model.onnx"):
        graph = onnx.load(rounded / name, load_external_data=False).graph
        cache = [v for v in (*graph.input, *graph.output) if v.name.startswith(("past_key_values.", "present."))]
        assert {value.type.tensor_type.elem_type for value in cache} == {TensorProto.INT8}
    with Session(rounded, "cpu") as session:
        generator = session.generator(64)
        generator.append_tokens([5, 6, 7])
        assert generator._made.get_output("present.0.key").dtype == np.int8


def test_a_conversation_goes_on_from_the_cache(rounded):
    """In turns, which cut the cache back and go on, as in one run of all."""
    with Session(rounded, "cpu") as session:
        conversation, answers = Conversation(session, max_new_tokens=12), []
        for text in ("Where should I eat in Rome?", "And in spring?"):
            answers.append(conversation.ask(text).text)
        assert conversation.last.cached_tokens > 0
        again = Conversation(session, max_new_tokens=12)
        again.turns = [("Where should I eat in Rome?", answers[0])]
        assert again.ask("And in spring?").text == answers[1]
        assert again.last.cached_tokens == 0


def test_ranges_of_keys_hold_at_every_position(rounded):
    """A key that turns, and its range from the first position alone."""
    ranges, rng = Ranges(rounded / MODEL, {}), np.random.default_rng(0)
    half = 32  # the built-in model's heads have 64 channels
    first = rng.standard_normal((4, 1, 2, half))
    angles = np.outer(np.arange(3000), 10000 ** -(np.arange(half) / half))
    x, y = first[:, :, 0], first[:, :, 1]
    turned = np.concatenate([x * np.cos(angles) - y * np.sin(angles), x * np.sin(angles) + y * np.cos(angles)], -1)
    ranges.add(KEYS, turned[:, :1])
    assert (np.abs(turned).max(1) <= 1.0001 * ranges.largest[KEYS]).all()
    assert (np.abs(turned).max(1) > 1.1 * np.abs(turned[:, 0])).any()  # one position's own would not have held


def test_only_where_onnxruntime_has_it(two_graphs, tmp_path):
    with pytest.raises(UsageError, match="--kv-cache int8 goes with --device cpu or cuda, not dml"):
        optimize(root=tmp_path, base=str(two_graphs / "awq"), device="dml", kv_cache="int8")


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_count(), reason="no NVIDIA GPU")
def test_on_a_gpu(two_graphs, data_file, tmp_path):
    plain, rounded = (optimize(root=tmp_path / kind, base=str(two_graphs / "awq"), device="cuda", kv_cache=kind,
                               adapters=[f"travel={two_graphs / 'travel'}"]).folder for kind in ("float", "int8"))
    assert changed(plain, rounded, data_file, None).kl < 1e-2
    assert changed(plain, rounded, data_file, "travel").kl < 3e-2
    with Session(rounded) as session:
        conversation = Conversation(session, adapter="travel", max_new_tokens=8)
        conversation.ask("Where should I eat in Rome?")
        assert session.provider == "cuda" and conversation.ask("And in spring?").cached_tokens > 0
