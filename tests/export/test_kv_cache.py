"""The key/value cache in int8: what it changes of the answers, what it takes, how its scales are found."""

import contextlib
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx_checkpoints import random_adapter

from phicli import Conversation, Session, optimize
from phicli.errors import BadInput, UsageError
from phicli.evaluation.figures import Agreement, log_softmax
from phicli.export.adapters import qkv_sizes
from phicli.export.genai_config import read_config
from phicli.export.kv_cache import Ranges
from phicli.export.slots import MODEL
from phicli.export.token_cache import has_scales
from phicli.hardware.driver import gpu_count
from phicli.inference.engine import Engine, Piece, Request
from phicli.inference.ops import ops_of
from phicli.kernels.build import missing

pytestmark = pytest.mark.skipif(bool(missing("cpu")), reason=f"{missing('cpu')}")
KEYS = "present.0.key"
QUESTION = "Where should I eat in Rome, and what should I see there in spring?"


@pytest.fixture(scope="module")
def rounded(two_graphs, tmp_path_factory):
    """`two_graphs` with its cache in int8, by a scale for each token."""
    return built(two_graphs, tmp_path_factory.mktemp("by_token"), ["cooking", "travel"])


@pytest.fixture(scope="module")
def by_channel(two_graphs, tmp_path_factory):
    """The same with a scale for each channel, as before there was attention of our own, and on machines without it."""
    with without_compiler():
        return built(two_graphs, tmp_path_factory.mktemp("by_channel"), ["travel"])


@contextlib.contextmanager
def without_compiler():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CC", raising=False)
        patch.setenv("PATH", "")
        yield


def built(two_graphs: Path, root: Path, adapters: list[str], cache: str = "int8", output: Path | None = None) -> Path:
    named = [entry if "=" in entry else f"{entry}={two_graphs / entry}" for entry in adapters]
    return optimize(root=root, output=output and str(output), base=str(two_graphs / "awq"), adapters=named,
                    device="cpu", activations="fp32", head="float", adapter_layout="fused", kv_cache=cache).folder


def agreement(one: np.ndarray, other: np.ndarray) -> Agreement:
    found = Agreement()
    found.add(log_softmax(one), log_softmax(other))
    return found


def changed(plain: Path, rounded: Path, text: Path, adapter: str | None) -> Agreement:
    """Over a text that is longer than those of the calibration."""
    with Session(plain) as one, Session(rounded) as other:
        ids = one.codec.encode_text(text.read_text(encoding="utf-8"))[:1200]
        return agreement(one.logits(ids, adapter), other.logits(ids, adapter))


# Random adapters make keys and values larger; of channels with the model's own scales the KL of this one is 0.6.
@pytest.mark.parametrize(("way", "adapter", "most"), [
    ("rounded", None, 1e-3), ("rounded", "travel", 3e-3), ("by_channel", None, 8e-3), ("by_channel", "travel", 3e-2)])
def test_it_hardly_changes_the_answers(two_graphs, data_file, way, adapter, most, request):
    found = changed(two_graphs / "onnx-ao", request.getfixturevalue(way), data_file, adapter)
    assert 0 < found.kl < most and found.top1 > 0.9


@pytest.mark.parametrize(("way", "compiler", "most"), [
    ("rounded", True, 8e-3), ("by_channel", False, 3e-2), ("by_channel", True, 8e-3)])
def test_an_adapter_may_come_later(two_graphs, tiny, data_file, tmp_path, way, compiler, most, request):
    """Random, so that its keys and values are much larger than the model's own; scales of channels are measured anew,
    or, where attention of our own can run, become scales of tokens.
    """
    loud = random_adapter(tiny, tmp_path / "loud", r=8, lora_alpha=64, target_modules=["qkv_proj"])
    folders = []
    for source, kind in ((two_graphs / "onnx-ao", "float"), (request.getfixturevalue(way), "int8")):
        shutil.copytree(source, tmp_path / kind)
        with contextlib.nullcontext() if compiler else without_compiler():
            folders.append(built(two_graphs, tmp_path, [f"loud={loud}"], kind, tmp_path / kind))
    assert has_scales(onnx.load(folders[1] / "base.onnx", load_external_data=False).graph) == compiler
    for name in ("loud", "travel"):
        assert changed(*folders, data_file, name).kl < most


@pytest.mark.parametrize(("way", "more"), [("rounded", 2), ("by_channel", 0)])
def test_what_lies_in_memory_is_int8(way, more, request):
    folder = request.getfixturevalue(way)
    for name in ("base.onnx", "model.onnx"):
        graph = onnx.load(folder / name, load_external_data=False).graph
        cache = [v for v in (*graph.input, *graph.output) if v.name.startswith(("past_key_values.", "present."))]
        assert {value.type.tensor_type.elem_type for value in cache} == {TensorProto.INT8}
    with Session(folder, "cpu") as session:
        generator = session.generator(64)
        generator.append_tokens([5, 6, 7])
        keys = generator._made.get_output("present.0.key")
        assert keys.dtype == np.int8 and keys.shape[-1] == 64 + more


def test_without_a_compiler_the_same_folder_runs(two_graphs, rounded, data_file):
    """By the function that the graph brings."""
    with without_compiler():
        assert changed(two_graphs / "onnx-ao", rounded, data_file, None).kl < 1e-3


def test_it_is_not_for_a_gpu(rounded):
    with pytest.raises(BadInput, match="its key/value cache in int8 is for cpu"):
        ops_of(onnx.load(rounded / MODEL, load_external_data=False), {}, "cuda")


def test_heads_are_as_large_as_without(two_graphs, rounded, tmp_path):
    """Also where their number of channels is one that heads with a scale have in genai_config.json."""
    wanted = qkv_sizes(two_graphs / "onnx-ao")
    assert qkv_sizes(rounded) == wanted
    folder = shutil.copytree(two_graphs / "onnx-ao", tmp_path / "onnx-ao")
    config = (folder / "genai_config.json").read_text()
    (folder / "genai_config.json").write_text(config.replace('"head_size": 64', '"head_size": 100'))
    assert [64 * size for size in qkv_sizes(folder)] == [100 * size for size in wanted]


def test_rows_share_runs_with_scales_of_tokens(rounded, by_channel, two_graphs):
    """Each gets what it gets alone, with an adapter too that came after the model was opened."""
    with Engine(by_channel, max_batch=2) as engine:
        assert engine.why_alone == "its keys and values are in int8 with scales of channels"
    with Engine(rounded, max_batch=3) as engine:
        assert engine.why_alone is None
        engine.add_adapter("late", two_graphs / "cooking")
        ids = engine.codec_of(None).encode_text(QUESTION)
        check_together(engine, [Request(ids[: 6 + 3 * n], name, max_tokens=20)
                                for n, name in enumerate((None, "travel", "late"))])


def check_together(engine: Engine, asked: list[Request]) -> None:
    alone = [[t for e in engine.generate(request) if isinstance(e, Piece) for t in e.ids] for request in asked]
    found, done = [[] for _ in asked], threading.Semaphore(0)
    for request, own in zip(asked, found, strict=True):
        engine.submit(request, lambda e, own=own: own.extend(e.ids) if isinstance(e, Piece) else done.release())
    assert all(done.acquire(timeout=60) for _ in asked) and found == alone and alone[1] != alone[0]


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


def test_ranges_of_keys_hold_at_every_position(two_graphs):
    """A key that turns, and its range from the first position alone."""
    ranges, rng = Ranges(two_graphs / "onnx-ao" / MODEL, {}), np.random.default_rng(0)
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


def for_cuda(two_graphs: Path, root: Path, cache: str, adapters: list[str]) -> Path:
    return optimize(root=root / cache, base=str(two_graphs / "awq"), device="cuda", kv_cache=cache,
                    adapters=adapters).folder


def test_a_folder_for_cuda_runs_by_the_function_that_the_graph_brings(two_graphs, monkeypatch, tmp_path):
    """In onnxruntime alone, a prompt and then a token."""
    monkeypatch.setattr("phicli.steps.optimize.missing", lambda device: None)
    plain, rounded = (for_cuda(two_graphs, tmp_path, cache, []) for cache in ("float", "int8"))
    sizes = [read_config(folder)["model"]["decoder"]["head_size"] for folder in (plain, rounded)]
    assert sizes == [64, 68]
    ids, found = np.arange(40)[None] * 7 % 1000, []
    for folder, size, dtype in zip((plain, rounded), sizes, (np.float16, np.int8), strict=True):
        session = onnxruntime.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        empty = np.zeros((1, session.get_inputs()[-1].shape[1], 0, size), dtype)
        past = {value.name: empty for value in session.get_inputs() if value.name.startswith("past")}
        first = dict(zip(names, session.run(None, {
            "input_ids": ids[:, :39], "attention_mask": np.ones((1, 39), np.int64), **past}), strict=True))
        past = {name: first[name.replace("past_key_values", "present")] for name in past}
        last = session.run(None, {"input_ids": ids[:, 39:], "attention_mask": np.ones((1, 40), np.int64), **past})[0]
        found.append(np.concatenate([first[names[0]], last], 1)[0].astype(np.float32))
    assert past["past_key_values.0.key"].dtype == np.int8 and 0 < agreement(*found).kl < 2e-3
    with pytest.raises(BadInput, match="its key/value cache in int8 is for cuda"):
        ops_of(onnx.load(rounded / MODEL, load_external_data=False), {}, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_count(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("by_token", [True, False])
def test_on_a_gpu(two_graphs, data_file, tmp_path, by_token, monkeypatch):
    adapters = [f"travel={two_graphs / 'travel'}"]
    if not by_token:  # as on a machine without a compiler
        monkeypatch.setattr("phicli.steps.optimize.takes_scales", lambda *args: False)
    plain, rounded = (for_cuda(two_graphs, tmp_path, cache, adapters) for cache in ("float", "int8"))
    for adapter, most in ((None, 2e-3 if by_token else 1e-2), ("travel", 6e-3 if by_token else 3e-2)):
        assert changed(plain, rounded, data_file, adapter).kl < most
    if by_token:
        with Engine(rounded, device="cuda", max_batch=3, fixed_batch=True, prefix_cache=False) as engine:
            assert engine.why_alone is None
            ids = engine.codec_of(None).encode_text(QUESTION)
            check_together(engine, [Request(ids[: 6 + 3 * n], name, max_tokens=20)
                                    for n, name in enumerate((None, "travel", "travel"))])
    with Session(rounded) as session:
        conversation = Conversation(session, adapter="travel", max_new_tokens=8)
        conversation.ask("Where should I eat in Rome?")
        assert session.provider == "cuda" and conversation.ask("And in spring?").cached_tokens > 0
