"""The key/value cache in int8: what it changes of the answers, what it takes, how its scales are found."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from phicli import Conversation, Session, optimize
from phicli.errors import UsageError
from phicli.evaluation.figures import Agreement, log_softmax
from phicli.export.kv_cache import Ranges


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


@pytest.mark.parametrize("adapter", [None, "travel"])
def test_it_hardly_changes_the_answers(two_graphs, rounded, tiny, adapter, data_file):
    with Session(two_graphs / "onnx-ao", "cpu") as plain, Session(rounded, "cpu") as session:
        ids = plain.codec.encode_text(data_file.read_text(encoding="utf-8"))[:2000]  # four times a calibration's length
        found = agreement(plain.logits(ids, adapter), session.logits(ids, adapter))
    assert 0 < found.kl < 1e-3 and found.top1 > 0.98


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
    ranges = Ranges(rounded / "model.onnx")
    name = ranges.outputs[0]
    size = onnx.load(rounded / "model.onnx", load_external_data=False).graph
    head = next(tensor.dims[0] for tensor in size.initializer if tensor.name == f"{name}.scale") // 4
    pairs = np.random.default_rng(0).standard_normal((4, 2, head // 2)).astype(np.float32)
    angles = np.outer(np.arange(3000), 10000 ** -(np.arange(head // 2) / (head // 2)))
    turned = np.stack([pairs[:, None, 0] * np.cos(angles) - pairs[:, None, 1] * np.sin(angles),
                       pairs[:, None, 0] * np.sin(angles) + pairs[:, None, 1] * np.cos(angles)], 2).reshape(4, 3000, head)
    ranges.add(name, turned[:, :1])
    assert (np.abs(turned).max(1) <= ranges.largest[name] * 1.0001).all()
    assert (np.abs(turned[:, :1]).max(1) < 0.9 * ranges.largest[name]).any()  # a single channel's would not have held


def test_only_where_onnxruntime_has_it(two_graphs, tmp_path):
    with pytest.raises(UsageError, match="--kv-cache int8 goes with --device cpu or cuda, not dml"):
        optimize(root=tmp_path, base=str(two_graphs / "awq"), device="dml", kv_cache="int8")
